//! libFuzzer before [`rebec_fuzz::texts`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::texts::seeds), |data: &[u8]| rebec_fuzz::texts::run(data));
