//! libFuzzer before [`rebec_fuzz::pool`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::pool::seeds), |data: &[u8]| rebec_fuzz::pool::run(data));
