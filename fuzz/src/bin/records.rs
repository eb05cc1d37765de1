//! libFuzzer before [`rebec_fuzz::records`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::records::seeds), |data: &[u8]| rebec_fuzz::records::run(data));
