//! Over CPUID as it was recorded (`*.txt`, by `rebec-vmm cpu --table`) and over processors made of their features' names.

use proptest::prelude::*;

use crate::{
    Entry, Features, KVM_FEATURES_LEAF, Level, Model, XSAVE_LEAF, beyond,
    entry::register,
    names::{FEATURES, ROWS, Rule},
    xsave::parts,
};

const PVM: &str = include_str!("pvm.txt");

fn table(text: &str) -> Vec<Entry> {
    let number = |word: &str| u32::from_str_radix(word, 16).unwrap();
    let line = |line: &str| {
        let words: Vec<u32> = line.split_ascii_whitespace().map(number).collect();
        Entry { leaf: words[0], subleaf: words[1], registers: words[2..6].try_into().unwrap() }
    };
    text.lines().filter(|line| !line.starts_with('#')).map(line).collect()
}

fn put(entries: &mut Vec<Entry>, leaf: u32, subleaf: u32, number: usize, value: u32) {
    let at = entries.iter().position(|entry| (entry.leaf, entry.subleaf) == (leaf, subleaf)).unwrap_or_else(|| {
        entries.push(Entry { leaf, subleaf, registers: [0; 4] });
        entries.len() - 1
    });
    entries[at].registers[number] |= value;
}

const HASWELL: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx rdtscp lm sse3 ssse3 cx16 \
                       sse4_1 sse4_2 popcnt lahf_lm fma movbe aes pclmulqdq xsave avx f16c rdrand bmi1 avx2 bmi2 abm fsgsbase smep xsaveopt xsave_x87 \
                       xsave_sse xsave_avx x2apic hypervisor pdpe1gb erms invpcid pcid spec_ctrl md_clear arch_capabilities invariant_tsc";
const SKYLAKE: &str = "avx512f avx512dq avx512cd avx512bw avx512vl smap adx rdseed clflushopt clwb xsavec xgetbv1 xsaves xsave_opmask xsave_zmm \
                       xsave_hi16_zmm pku xsave_pkru umip hle rtm";

/// A processor with these features, all of KVM's, and its XSAVE parts where they lie.
fn made(maker: &[u8; 12], lists: &[&str], xsave: &[(u32, u32, u32)], physical: u32) -> Vec<Entry> {
    let word = |at: usize| u32::from_le_bytes(maker[at..at + 4].try_into().unwrap());
    let mut entries = vec![Entry { leaf: 0, subleaf: 0, registers: [0x16, word(0), word(8), word(4)] }];
    for name in lists.iter().flat_map(|list| list.split_ascii_whitespace()) {
        for row in FEATURES.iter().filter(|row| row.kind == "CPU feature") {
            if let Some(bit) = row.bit(name) {
                put(&mut entries, row.leaf, row.subleaf, row.register, 1 << bit);
            }
        }
    }
    put(&mut entries, KVM_FEATURES_LEAF, 0, 0, 0x0100_7efb);
    put(&mut entries, 0x8000_0008, 0, 0, physical | 48 << 8);
    let end = xsave.iter().map(|(_, bytes, offset)| bytes + offset).max().unwrap_or(576);
    put(&mut entries, XSAVE_LEAF, 0, 2, end);
    for (number, bytes, offset) in xsave {
        put(&mut entries, XSAVE_LEAF, *number, 0, *bytes);
        put(&mut entries, XSAVE_LEAF, *number, 1, *offset);
    }
    entries
}

fn haswell() -> Vec<Entry> {
    made(b"GenuineIntel", &[HASWELL], &[(2, 256, 576)], 39)
}

fn skylake() -> Vec<Entry> {
    let places = [(2, 256, 576), (5, 64, 1088), (6, 512, 1152), (7, 1024, 1664), (9, 8, 2688)];
    let mut entries = made(b"GenuineIntel", &[HASWELL, SKYLAKE], &places, 46);
    // What this program knows nothing of.
    put(&mut entries, 0x24, 0, 1, 0x7_0001);
    entries
}

/// What a guest of a model sees on a host.
fn shown(host: &[Entry], model: &str) -> Vec<Entry> {
    let mut entries = host.to_vec();
    let model: Model = model.parse().unwrap();
    assert_eq!(model.lacks(&Features::of(host)), Vec::<String>::new());
    model.filter(&mut entries, 32);
    entries
}

#[test]
fn the_order_of_rows_is_a_format() {
    let places: Vec<String> = FEATURES.iter().map(|row| format!("{:x}.{:x}.{}", row.leaf, row.subleaf, row.register)).collect();
    let expected = "1.0.2 1.0.3 7.0.1 7.0.2 7.0.3 7.1.0 7.1.1 7.1.2 7.1.3 7.2.3 d.0.0 d.1.0 d.1.2 80000001.0.2 80000001.0.3 80000007.0.3 80000008.0.1 \
                    80000021.0.0 80000021.0.2 19.0.1 40000001.0.3 40000001.0.0";
    assert_eq!(places.join(" "), expected, "rows are added at the end, and none goes");
}

/// Each name of a level is one that the table knows: a letter too many would be a feature that nobody lacks.
#[test]
fn levels_grow_and_their_names_are_known() {
    let bits = |level: Level| crate::model::needs(level).iter().map(|word| word.count_ones()).sum::<u32>();
    assert_eq!(Level::ALL.map(bits), [32, 50, 68]);
    for list in crate::model::LISTS {
        for name in list.split_ascii_whitespace() {
            assert!(FEATURES.iter().any(|row| row.bit(name).is_some()), "{name}");
        }
    }
}

#[test]
fn a_recorded_host_is_below_the_levels_and_says_why() {
    let own = Features::of(&table(PVM));
    assert_eq!(Level::of(&own), None);
    let lacks = Model::Level(Level::V2).lacks(&own).join(", ");
    assert_eq!(
        lacks,
        "CPU feature sse3, CPU feature ssse3, CPU feature sse4_1, CPU feature sse4_2, CPU feature popcnt, CPU feature rdtscp"
    );
    assert!(own.names().contains(&"gfni".to_owned()) && own.names().contains(&"clocksource".to_owned()));
    assert_eq!(Model::Host.lacks(&own), Vec::<String>::new());
}

/// Emulation has no `vme`, and some processors of the first Zen have it switched off: no level asks for it (psABI, table 3.1).
#[test]
fn an_emulated_host_has_a_level() {
    let said = "AuthenticAMD:40.57:f7f83203.f8bf9fd.219c01ab.41020c.20000000.1080.0.0.0.0.207.5.0.171.edd3f9fd.0.204.0.0.0.0.1007efb:2=256@576,9=8@2688";
    let emulated: Features = said.parse().unwrap();
    assert_eq!(Level::of(&emulated), Some(Level::V3), "{:?}", Level::V3.lacks(&emulated));
}

#[test]
fn hosts_have_their_level() {
    assert_eq!((Level::of(&Features::of(&haswell())), Level::of(&Features::of(&skylake()))), (Some(Level::V3), Some(Level::V4)));
    assert_eq!(Model::Level(Level::V4).lacks(&Features::of(&haswell())).len(), 18 - 3, "Haswell has pcid, invpcid and erms of it");
}

/// Whoever has a level goes to each host of the level and back, whatever else these have; who was shown the host's own does not.
#[test]
fn a_guest_of_a_level_goes_everywhere_and_a_guest_of_the_host_does_not() {
    let (old, new) = (haswell(), skylake());
    for level in ["x86-64-v2", "x86-64-v3"] {
        let (at_old, at_new) = (shown(&old, level), shown(&new, level));
        assert_eq!(beyond(&at_old, &at_new), Vec::<String>::new(), "{level}");
        assert_eq!(beyond(&at_old, &new), Vec::<String>::new(), "{level}");
        assert_eq!(beyond(&at_new, &at_old), Vec::<String>::new(), "{level}");
    }
    let missing = beyond(&shown(&new, "host"), &old).join(", ");
    assert!(missing.contains("CPU feature avx512f") && missing.contains("CPUID 24.0 EBX of 0x70001"), "{missing}");
}

#[test]
fn a_level_hides_all_that_is_not_its_own() {
    let guest = shown(&skylake(), "x86-64-v2");
    assert_eq!(register(&guest, XSAVE_LEAF, 0, 0), 0);
    assert!(parts(&guest).is_empty() && register(&guest, 0x24, 0, 1) == 0);
    let names = Features::of(&guest).names();
    for hidden in ["avx", "xsave", "hle", "rtm", "pku", "arch_capabilities", "invariant_tsc", "async_pf", "pcid"] {
        assert!(!names.contains(&hidden.to_owned()), "{hidden}");
    }
    for there in ["sse4_2", "nx", "x2apic", "spec_ctrl", "md_clear", "clocksource_stable"] {
        assert!(names.contains(&there.to_owned()), "{there}");
    }
    let v3 = shown(&skylake(), "x86-64-v3");
    assert_eq!([0, 1, 2, 3].map(|number| register(&v3, XSAVE_LEAF, 0, number)), [7, 576, 832, 0]);
    assert_eq!(parts(&v3).iter().map(|part| part.number).collect::<Vec<_>>(), [2]);
    let v4 = shown(&skylake(), "x86-64-v4");
    assert_eq!([0, 2].map(|number| register(&v4, XSAVE_LEAF, 0, number)), [0xe7, 2688], "and not PKRU, which lies behind");
}

#[test]
fn a_large_machine_has_the_addresses_it_needs() {
    let model = Model::Level(Level::V2);
    for (needed, bits) in [(32, 39), (39, 39), (41, 41), (52, 46)] {
        let mut guest = skylake();
        model.filter(&mut guest, needed);
        assert_eq!(register(&guest, 0x8000_0008, 0, 0), bits | 48 << 8);
    }
}

/// How many CPUs a guest has is its machine's affair, and no model's.
#[test]
fn several_cpus_stay_several() {
    let mut host = haswell();
    put(&mut host, 1, 0, 3, 1 << 28);
    put(&mut host, 0x8000_0001, 0, 2, 1 << 1);
    let set = Features::of(&haswell());
    assert_eq!(Features::of(&host), set);
    for model in ["x86-64-v2".to_owned(), format!("only:{set}")] {
        let guest = shown(&host, &model);
        assert_eq!((register(&guest, 1, 0, 3) >> 28 & 1, register(&guest, 0x8000_0001, 0, 2) & 2), (1, 2));
    }
}

#[test]
fn what_hosts_have_in_common_is_a_model_for_all_of_them() {
    let mut newer = skylake();
    // One that lays out its XSAVE area otherwise: that part is not in common.
    newer.retain(|entry| (entry.leaf, entry.subleaf) != (XSAVE_LEAF, 9));
    put(&mut newer, XSAVE_LEAF, 9, 0, 8);
    put(&mut newer, XSAVE_LEAF, 9, 1, 832);
    let hosts = [("a", skylake()), ("b", newer), ("c", haswell())];
    let sets: Vec<(&str, Features)> = hosts.iter().map(|(name, host)| (*name, Features::of(host))).collect();
    let common = |count: usize| Features::common(sets[..count].iter().map(|(name, set)| (*name, set))).unwrap().unwrap();
    assert!(common(1).names().contains(&"xsave_pkru".to_owned()) && !common(2).names().contains(&"xsave_pkru".to_owned()));
    for count in 1..=3 {
        let model = format!("only:{}", common(count));
        for (name, host) in &hosts[..count] {
            for (other, elsewhere) in &hosts[..count] {
                assert_eq!(beyond(&shown(host, &model), &shown(elsewhere, &model)), Vec::<String>::new(), "{name} to {other}");
            }
        }
    }
    let lacks = Model::Only(common(1).into()).lacks(&sets[2].1).join(", ");
    assert!(lacks.contains("CPU feature avx512f") && lacks.contains("physical addresses of 46 bits (this host has 39)"), "{lacks}");
    let amd = Features::of(&table(PVM));
    let refused = Features::common([("a", &sets[0].1), ("z", &amd)]).unwrap_err();
    assert!(refused.contains("host z has a processor by AuthenticAMD") && refused.contains("as a has it"), "{refused}");
    assert_eq!(Features::common([]), Ok(None));
}

#[test]
fn a_set_is_a_line_of_text() {
    let text = "AuthenticAMD:48.48:81202000.78bf9ff.1800002.104.20000000.0.0.0.0.0.e7.0.0.400391.23d3f9ff.0.50020005.204.6.0.0.1007efb:\
                2=256@576,5=64@832,6=512@896,7=1024@1408";
    let set = Features::of(&table(PVM));
    assert_eq!(set.to_string(), text);
    assert_eq!(text.parse(), Ok(set.clone()));
    // A later version has more rows: what this one does not know is not there.
    let later = text.replace(".1007efb:", ".1007efb.1.2:");
    assert_eq!(later.parse(), Ok(set));
    for wrong in [
        "",
        "AuthenticAMD",
        "AuthenticAMD:48:0:",
        "Authentic:48.48:0:",
        "AuthenticAMD:48.65:0:",
        "AuthenticAMD:48.48:+1:",
        "AuthenticAMD:48.48:100000000:",
        "AuthenticAMD:48.48:0:1=2@3",
        "AuthenticAMD:48.48:0:3=2@3,2=2@3",
        "AuthenticAMD:48.48:0::",
        &format!("AuthenticAMD:48.48:{}:", "1.".repeat(65)),
        &"a".repeat(4096),
    ] {
        assert!(wrong.parse::<Features>().is_err(), "{wrong}");
    }
    assert_eq!("x86-64-v3".parse::<Model>(), Ok(Model::Level(Level::V3)));
    assert_eq!("host".parse::<Model>().unwrap().to_string(), "host");
    assert!("x86-64-v5".parse::<Model>().unwrap_err().to_string().starts_with("`x86-64-v5` is no CPU model"));
}

proptest! {
    /// Whatever a host says of itself, a guest of a set is shown nothing beyond the set, and what it is shown the host can keep.
    #[test]
    fn a_guest_is_shown_no_more_than_both_have(host in entries(), other in entries()) {
        let (host_set, other_set) = (Features::of(&host), Features::of(&other));
        if let Ok(Some(common)) = Features::common([("a", &host_set), ("b", &other_set)]) {
            let mut guest = host.clone();
            Model::Only(common.clone().into()).filter(&mut guest, 32);
            let rows = (0..ROWS).filter(|row| Features::of(&guest).word(*row) & !common.word(*row) != 0).count();
            prop_assert_eq!(rows, 0);
            for entry in &guest {
                for number in 0..4 {
                    if let Rule::Features(_) = Rule::of(entry.leaf, entry.subleaf, number) {
                        prop_assert_eq!(entry.registers[number] & !register(&host, entry.leaf, entry.subleaf, number), 0);
                    }
                }
            }
            prop_assert_eq!(common.to_string().parse::<Features>().unwrap().to_string(), common.to_string());
        }
    }

    #[test]
    fn random_text_never_panics(text in ".{0,80}") {
        text.parse::<Features>().ok();
        format!("only:AuthenticAMD:{text}").parse::<Model>().ok();
    }
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let leaf = proptest::sample::select(vec![1, 6, 7, 0xd, 0x19, 0x24, KVM_FEATURES_LEAF, 0x8000_0001, 0x8000_0008, 0x8000_0021]);
    let entry = (leaf, 0_u32..12, any::<[u32; 4]>()).prop_map(|(leaf, subleaf, registers)| Entry { leaf, subleaf, registers });
    proptest::collection::vec(entry, 0..24).prop_map(|mut entries| {
        entries.sort_by_key(|entry| (entry.leaf, entry.subleaf));
        entries.dedup_by_key(|entry| (entry.leaf, entry.subleaf));
        entries.push(made(b"GenuineIntel", &[], &[], 0)[0]);
        entries
    })
}
