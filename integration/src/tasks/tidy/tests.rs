//! A repository of a few files, and what is wrong with it.

use super::*;

fn faults_in(name: &str, text: &str) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("Cargo.toml"), "[workspace.dependencies]\nours = { path = \"x\" }\n").unwrap();
    let path = root.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    check_with(root.path(), &[]).unwrap().iter().map(Fault::to_string).collect()
}

#[test]
fn rust_files_keep_their_rules() {
    assert!(faults_in("a.rs", "//! Good.\nfn main() {}\n").is_empty());
    assert!(faults_in("a.rs", "fn main() {}\n")[0].starts_with("a.rs:1: does not open"));
    assert!(faults_in("a.rs", &("//! Long.\n".to_owned() + &"\n".repeat(600)))[0].contains("601 lines"));
    let code = format!("//! Bad.\nfn main() {{ {} {{ }} }}\n", concat!("un", "safe"));
    assert!(faults_in("a.rs", &code)[0].starts_with("a.rs:2: unsafe"));
    assert!(faults_in("vmm/kvm/a.rs", &code).is_empty());
}

#[test]
fn words_and_links_are_checked_everywhere() {
    let text = format!("//! Good.\n// {}: later\n", concat!("TO", "DO"));
    assert!(faults_in("a.rs", &text)[0].starts_with("a.rs:2: "));
    assert!(faults_in("docs/a.md", "[x](b.md) [y](https://example.org) [z](#part)\n")[0].contains("links to b.md"));
    assert!(faults_in("docs/a.md", "[x](a.md#part)\n```\n[y](nowhere)\n```\n").is_empty());
}

#[test]
fn a_dependency_without_a_line_is_named() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("Cargo.toml"), "[workspace.dependencies]\nlibc = \"0.2\"\n").unwrap();
    assert_eq!(check_with(root.path(), &[]).unwrap()[0].to_string(), "Cargo.toml: dependency libc has no line in docs/dependencies.md");
}

#[test]
fn a_stale_line_and_an_unused_dependency_are_named() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("Cargo.toml", "[workspace]\nmembers = [\"a\"]\n[workspace.dependencies]\nlibc = \"0.2\"\nlog = \"0.4\"\n");
    write("a/Cargo.toml", "[dev-dependencies]\nlog.workspace = true\n");
    write("fuzz/Cargo.toml", "[dependencies]\nlibfuzzer-sys = \"0.4\"\n");
    write("docs/dependencies.md", "- `libc`: x\n- `log`: x\n- `libfuzzer-sys`: x\n- `gone`: x\n");
    let faults: Vec<String> = check_with(root.path(), &[]).unwrap().iter().map(Fault::to_string).collect();
    assert_eq!(faults, ["Cargo.toml: dependency libc is used by no member", "docs/dependencies.md:4: gone is in no manifest"]);
}
