//! Small crates, the arrows between their modules, and what is told of the circles in them.

use super::*;

/// A crate in `x/src` whose root declares nothing, with these files in it.
fn faults_of(files: &[(&str, &str)], exceptions: &[Exception]) -> Vec<String> {
    let mut all: Vec<File> = vec![("x/src/lib.rs".to_owned(), String::new())];
    for (path, text) in files {
        all.retain(|(known, _)| known != path);
        all.push(((*path).to_owned(), (*text).to_owned()));
    }
    let mut faults = Vec::new();
    check(&all, exceptions, &mut faults);
    faults.iter().map(Fault::to_string).collect()
}

/// Whether module `a`, with this text, names module `b`, which names `a`.
fn a_names_b(text: &str) -> bool {
    let faults = faults_of(&[("x/src/a.rs", text), ("x/src/b.rs", "use crate::a::A;")], &[]);
    assert!(faults.len() <= 1, "{faults:?}");
    !faults.is_empty()
}

#[test]
fn a_circle_is_told_by_a_shortest_way_round() {
    let files = [
        ("x/src/a.rs", "//! First.\n\nuse crate::b::B;\n"),
        ("x/src/b.rs", "use crate::c::C;"),
        ("x/src/c.rs", "use crate::a::A;"),
        ("x/src/d.rs", "use crate::a::A;"),
    ];
    assert_eq!(faults_of(&files, &[]), ["x/src: a -> b -> c -> a is a circle of modules (use at x/src/a.rs:3)"]);
    let shortcut = [&files[..], &[("x/src/b.rs", "use crate::{a::A, c::C};")]].concat();
    assert_eq!(faults_of(&shortcut, &[]), ["x/src: a -> b -> a is a circle of modules (use at x/src/a.rs:3; with it a, b, c)"]);
}

#[test]
fn circles_of_one_crate_are_told_apart() {
    let files = [
        ("x/src/a.rs", "use crate::b::B;"),
        ("x/src/b.rs", "use crate::a::A;"),
        ("x/src/c.rs", "use crate::{a::A, d::D};"),
        ("x/src/d.rs", "use crate::c::C;"),
    ];
    assert_eq!(faults_of(&files, &[]).len(), 2);
}

#[test]
fn paths_are_read_wherever_they_stand() {
    for text in [
        "use crate::b;",
        "use crate::{c, b::{self, B}};",
        "pub use crate::b::*;",
        "use {std::fs, crate::b::B as Other};",
        "fn f() -> crate::b::B { crate::b::B { x: 1 } }",
        "use super::b::B;",
        "mod inner { use super::super::b::B; }",
        "macro_rules! m { () => { $crate::b::f() } }",
        "fn f() { for x in crate::b::all() {} }",
        "use self::super::b::B;",
    ] {
        assert!(a_names_b(text), "{text}");
    }
    for text in [
        "use crate::c::b;",
        "use self::b::B;",
        "use b::B;",
        "pub(in crate::b) struct A;",
        "mod inner { use super::b::B; }",
        "use other::{a, b::B};",
    ] {
        assert!(!a_names_b(text), "{text}");
    }
}

#[test]
fn what_is_below_a_module_belongs_to_it() {
    let files =
        [("x/src/a/mod.rs", "mod inner;"), ("x/src/a/inner.rs", "use super::super::b::B;"), ("x/src/b.rs", "use crate::a::inner::A;")];
    assert_eq!(faults_of(&files, &[]), ["x/src: a -> b -> a is a circle of modules (use at x/src/a/inner.rs:1)"]);
    let children =
        [("x/src/a/mod.rs", "pub mod b; pub mod c;"), ("x/src/a/b.rs", "use super::c::C;"), ("x/src/a/c.rs", "use super::b::B;")];
    assert!(faults_of(&children, &[]).is_empty());
}

#[test]
fn a_name_at_the_root_leads_to_its_module() {
    let root = ("x/src/lib.rs", "mod a; mod b;\npub use b::{deep::B, Other as Renamed};\npub use crate::b::Third;\nfn own() {}\n");
    let other = ("x/src/b.rs", "use crate::a::A;");
    for text in ["use crate::B;", "use crate::Renamed;", "fn f(x: crate::Third) {}"] {
        assert_eq!(faults_of(&[root, ("x/src/a.rs", text), other], &[]).len(), 1, "{text}");
    }
    for text in ["use crate::Other;", "use crate::own;", "use crate::*;"] {
        assert!(faults_of(&[root, ("x/src/a.rs", text), other], &[]).is_empty(), "{text}");
    }
}

#[test]
fn tests_comments_and_strings_name_nothing() {
    for text in [
        "// use crate::b::B;\n/// [`crate::b::B`]\nfn f() {}",
        "/* use crate::b; /* crate::b::B */ crate::b::B */",
        "const X: &str = \"use crate::b::B; \\\" crate::b::B\";",
        "const X: &str = r#\"crate::b::B \" crate::b::B\"#;",
        "const X: &[u8] = b\"crate::b::B\";",
        "#[cfg(test)]\nmod tests { use crate::b::B; fn f() { [1; 2]; } }",
        "#[cfg(test)]\n#[expect(lint, reason = \"x\")]\nuse crate::b::{B, C};",
        "#[cfg(all(test, unix))]\nfn f() { crate::b::B::new() }",
    ] {
        assert!(!a_names_b(text), "{text}");
    }
    // What comes after them counts again.
    for text in [
        "const X: char = '\"'; use crate::b::B;",
        "fn f<'a>(x: &'a str) { '\\''; crate::b::f(\"x\") }",
        "const X: &str = r\"\\\"; use crate::b::B;",
        "#[cfg(test)]\nmod tests;\nuse crate::b::B;",
        "#[cfg(not(test))]\nuse crate::b::B;",
        "/* /* */ */ use crate::b::B;",
        "fn r#type() { r#type(crate::b::B) }",
    ] {
        assert!(a_names_b(text), "{text}");
    }
}

#[test]
fn files_of_tests_name_nothing() {
    let other = ("x/src/b.rs", "use crate::a::A;");
    for path in ["x/src/a/tests.rs", "x/src/a/tests/more.rs", "x/src/bin/a.rs", "x/tests/a.rs", "x/src/tests.rs"] {
        assert!(faults_of(&[("x/src/a/mod.rs", ""), (path, "use crate::{a::A, b::B};"), other], &[]).is_empty(), "{path}");
    }
    let declared = [("x/src/a/mod.rs", "#[cfg(test)]\npub(crate) mod samples;"), ("x/src/a/samples.rs", "use crate::b::B;"), other];
    assert!(faults_of(&declared, &[]).is_empty());
    let at_root = [("x/src/lib.rs", "#[cfg(test)] mod a; mod b;"), ("x/src/a.rs", "use crate::b::B;"), other];
    assert!(faults_of(&at_root, &[]).is_empty());
}

#[test]
fn an_exception_excuses_its_modules_and_no_others() {
    let exception = |modules| [Exception { folder: "x/src", modules, why: "they grew together" }];
    let two = [("x/src/a.rs", "use crate::b::B;"), ("x/src/b.rs", "use crate::a::A;"), ("x/src/c.rs", "use crate::a::A;")];
    assert!(faults_of(&two, &exception(&["a", "b"])).is_empty());
    let three = [&two[..], &[("x/src/b.rs", "use crate::{a::A, c::C};")]].concat();
    assert_eq!(faults_of(&three, &exception(&["a", "b"])).len(), 2, "a wider circle is not excused, and its exception excuses nothing");
    let elsewhere = [Exception { folder: "y/src", modules: &["a", "b"], why: "they grew together" }];
    assert_eq!(faults_of(&two, &elsewhere).len(), 2);
}

#[test]
fn an_exception_that_nobody_needs_is_named() {
    let why = "they grew together";
    let files = [("x/src/a.rs", "use crate::b::B;"), ("x/src/b.rs", "use crate::a::A;"), ("x/src/c.rs", "")];
    let wide = [Exception { folder: "x/src", modules: &["a", "b", "c"], why }];
    assert_eq!(
        faults_of(&files, &wide),
        ["x/src: c: in no circle any more; take the names out of the exceptions of this rule (they grew together)"]
    );
    let gone = [Exception { folder: "gone/src", modules: &["a", "b"], why }];
    assert!(faults_of(&[], &gone)[0].starts_with("gone/src: a, b: in no circle any more"));
}
