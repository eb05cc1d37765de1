//! libFuzzer before [`rebec_fuzz::saved`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::saved::seeds), |data: &[u8]| rebec_fuzz::saved::run(data));
