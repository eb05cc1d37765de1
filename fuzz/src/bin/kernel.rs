//! libFuzzer before [`rebec_fuzz::kernel`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::kernel::seeds), |data: &[u8]| rebec_fuzz::kernel::run(data));
