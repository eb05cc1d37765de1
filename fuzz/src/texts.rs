//! What a caller writes: lines of the control socket, values of command line options.
//!
//! ```text
//! input = choice:u8 text        0 request, 1 response, 2 hello; 3 --net, 4 --disk, 5 --memory, 6 --serial, 7 a MAC address, 8 --cpu and what a host says of its processor
//! ```

use std::{fmt::Debug, net::SocketAddrV4};

use rebec_cpu::{Features, Level, Model};
use rebec_vmm_api::{
    DiskConfig, MacAddr, MemorySize, NetConfig, SerialConfig,
    control::{Command, ControlError, ErrorCode, Hello, MigrateOptions, Progress, Request, Response, ResponseBody},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::input::Input;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let bytes = input.rest();
    match choice {
        0 => return line::<Request>(bytes),
        1 => return line::<Response>(bytes),
        2 => return line::<Hello>(bytes),
        _ => {}
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match choice {
        3 => match text.parse::<NetConfig>() {
            Ok(net) => assert!(net.vni < 1 << 24 && !net.mac.is_multicast() && net.peers.len() <= NetConfig::PEERS_MAX, "{net:?}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        4 => match text.parse::<DiskConfig>() {
            Ok(disk) => assert!(!disk.image.to_string().is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        5 => match text.parse::<MemorySize>() {
            Ok(size) => assert_eq!(MemorySize::from_bytes(size.bytes()), Ok(size)),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        6 => drop(text.parse::<SerialConfig>()),
        8 => processor(text),
        _ => {
            if let Ok(mac) = text.parse::<MacAddr>() {
                assert_eq!(mac.to_string().parse(), Ok(mac));
            }
        }
    }
}

/// A host's word about its processor is compared with others', and is one that any host reads again.
fn processor(text: &str) {
    if let Ok(model) = text.parse::<Model>() {
        assert_eq!(model.to_string().parse().ok(), Some(model));
    }
    let Ok(features) = text.parse::<Features>() else { return };
    assert_eq!(features.to_string().parse().ok(), Some(features.clone()));
    assert!(features.missing_on(&features).is_empty());
    let common = Features::common([("one", &features), ("other", &features)]);
    assert!(common.is_ok_and(|common| common.is_none_or(|common| common.missing_on(&features).is_empty())));
    Level::of(&features);
}

/// What was read is written and read again; it stays the same, and stays one line.
fn line<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_string(&value).expect("what was read can be written");
    assert!(!text.contains('\n'));
    assert_eq!(serde_json::from_str::<T>(&text).expect("what was written can be read"), value);
}

/// Every request, an answer of each kind, and one value of each option.
pub fn seeds() -> Vec<Vec<u8>> {
    let migrate = MigrateOptions { streams: 2, downtime_ms_max: 300, bandwidth_mbit_max: Some(100), clock_ahead_ms: -7 };
    let fdb = Command::FdbAdd {
        mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
        endpoint: SocketAddrV4::new([10, 0, 0, 2].into(), 4789),
        ip: Some([10, 7, 0, 5].into()),
        name: Some("web".to_owned()),
        net: None,
    };
    let commands = [Command::Status, Command::Pause, Command::Stop, Command::PowerButton, Command::Donate, fdb, Command::Migrate(migrate)];
    let progress = Progress {
        phase: "rounds".to_owned(),
        round: 1,
        remaining_units: 2,
        total_units: 3,
        wire_bytes: 4,
        applied_mbit: 5,
        predicted_ms: 6,
    };
    let error = ControlError { code: ErrorCode::Busy, message: "a move is under way".to_owned() };
    let json = |choice: u8, text: serde_json::Result<String>| [&[choice][..], text.expect("seeds can be written").as_bytes()].concat();
    let mut seeds: Vec<_> = commands.map(|command| json(0, serde_json::to_string(&Request::new(1, command)))).into();
    for body in [ResponseBody::Error(error), ResponseBody::Progress(progress)] {
        seeds.push(json(1, serde_json::to_string(&Response { id: 1, body })));
    }
    let status = r#"{"id":3,"ok":{"status":{"state":"running","epoch":1,"vm":"00","memory_bytes":1,"vcpus":1,"disk_bytes":[512],
        "nets":[{"mac":"52:54:00:00:00:01","vni":7,"tx_frames":1,"rx_frames":2,"dropped":3}],"ledger":true}}}"#;
    seeds.push([&[1][..], status.as_bytes()].concat());
    seeds.push(json(2, serde_json::to_string(&Hello::current())));
    let values: [(u8, &str); 7] = [
        (3, "vni=7,mac=52:54:00:77:00:01,local=10.0.0.1:4790,peer=52:54:00:77:00:02@10.0.0.2:4790"),
        (4, "guest.qcow2,ro"),
        (5, "512M"),
        (6, "unix:/run/serial"),
        (7, "52:54:00:77:00:01"),
        (8, "x86-64-v2"),
        (8, "AuthenticAMD:48.48:1fabfbff.7ed8320b:2=256@576"),
    ];
    seeds.extend(values.map(|(choice, text)| [&[choice][..], text.as_bytes()].concat()));
    seeds
}
