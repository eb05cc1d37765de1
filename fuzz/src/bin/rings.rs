//! libFuzzer before [`rebec_fuzz::rings`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::rings::seeds), |data: &[u8]| rebec_fuzz::rings::run(data));
