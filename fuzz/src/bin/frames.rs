//! libFuzzer before [`rebec_fuzz::frames`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::frames::seeds), |data: &[u8]| rebec_fuzz::frames::run(data));
