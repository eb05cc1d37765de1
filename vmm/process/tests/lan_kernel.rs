//! A port of the LAN and a Linux vxlan device, in network namespaces of their own: pings of full size with DF, through a move and after it.
//!
//! Needs root, `ip`, `bridge` and `ping`. The station behind the port answers ARP and ICMP echo; a guest's TCP is tested with real guests.

#![expect(clippy::unwrap_used, reason = "a test of the outside world: whatever fails here fails the test")]

#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../src/lan/mod.rs"]
mod lan;

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rebec_devices::net::FramePort;
use rebec_offload::Offload;
use rebec_overlay::checksum::Sum;
use rebec_vmm_api::MacAddr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const STATION: MacAddr = MacAddr([0x52, 0x54, 0, 0, 7, 1]);
const STATION_IP: [u8; 4] = [192, 168, 77, 1];
const LONGEST: Duration = Duration::from_secs(30);

/// Two namespaces with a cable between them: `-k` with a vxlan device, `-p` for ports. Gone when dropped.
struct Spaces(String);

impl Spaces {
    fn new() -> Self {
        let spaces = Self(format!("rbo-{}", std::process::id()));
        let Self(name) = &spaces;
        for side in ["k", "p"] {
            ip(&format!("netns add {name}-{side}"));
            ip(&format!("-n {name}-{side} link set lo up"));
        }
        ip(&format!("link add veth netns {name}-k type veth peer name veth netns {name}-p"));
        ip(&format!("-n {name}-k addr add 10.77.0.2/24 dev veth"));
        ip(&format!("-n {name}-p addr add 10.77.0.1/24 dev veth"));
        for side in ["k", "p"] {
            ip(&format!("-n {name}-{side} link set veth up"));
        }
        ip(&format!("-n {name}-k link add vx type vxlan id 42 local 10.77.0.2 dstport 4789 nolearning"));
        ip(&format!("-n {name}-k link set vx mtu 1400 up"));
        ip(&format!("-n {name}-k addr add 192.168.77.2/24 dev vx"));
        run("ip", &format!("netns exec {name}-k sysctl -qw net.ipv4.conf.vx.arp_accept=1"));
        spaces
    }

    /// Tells the vxlan device where the station lives.
    fn station_is_at(&self, port: u16) {
        run("bridge", &format!("-n {}-k fdb replace {STATION} dev vx dst 10.77.0.1 port {port}", self.0));
        // Where the device floods to; such entries can only be added to.
        run("bridge", &format!("-n {}-k fdb append 00:00:00:00:00:00 dev vx dst 10.77.0.1 port {port}", self.0));
    }

    /// The vxlan device's own address.
    fn kernel_mac(&self) -> MacAddr {
        let shown = run("ip", &format!("-n {}-k -br link show vx", self.0));
        shown.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
    }

    /// Pings of the largest size the LAN takes, not to be fragmented.
    fn ping(&self, count: u32) -> Child {
        let arguments = format!("netns exec {}-k ping -q -M do -s 1372 -i 0.02 -W 2 -c {count} 192.168.77.1", self.0);
        Command::new("ip").args(arguments.split(' ')).stdout(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for side in ["k", "p"] {
            let _status = Command::new("ip").args(["netns", "del", &format!("{}-{side}", self.0)]).status();
        }
    }
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments} (root?): {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn assert_no_loss(ping: Child, count: u32) {
    let output = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
    assert!(output.contains(&format!("{count} received")), "{output}");
}

/// A guest without a guest: answers ARP and ICMP echo until told to stop, then hands back its port.
struct Station {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<lan::LanPort>,
}

impl Station {
    fn start(mut port: lan::LanPort) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let started = Instant::now();
            while !stopped.load(Ordering::Relaxed) && started.elapsed() < LONGEST {
                while let Some(received) = port.receive().unwrap() {
                    if let Some(answer) = answer(received.frame.to_vec()) {
                        port.send(&Offload::default(), &answer).unwrap();
                    }
                }
                port.flush().unwrap();
                if port.next_deadline().is_some_and(|due| due <= Instant::now()) {
                    port.tick(Instant::now());
                }
                let timeout = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                poll(&mut [PollFd::from_borrowed_fd(port.descriptor(), PollFlags::IN)], Some(&timeout)).unwrap();
            }
            port
        });
        Self { stop, thread }
    }

    fn stop(self) -> lan::LanPort {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn answer(mut frame: Vec<u8>) -> Option<Vec<u8>> {
    let asker: [u8; 6] = frame[6..12].try_into().unwrap();
    match frame[12..14] {
        [8, 6] if frame[20..22] == [0, 1] && frame[38..42] == STATION_IP => {
            let asker_ip: [u8; 4] = frame[28..32].try_into().unwrap();
            let reply = [&asker[..], &STATION.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &STATION.0, &STATION_IP, &asker, &asker_ip];
            Some(reply.concat())
        }
        [8, 0] if frame[23] == 1 && frame[34] == 8 && frame[30..34] == STATION_IP => {
            frame[..6].copy_from_slice(&asker);
            frame[6..12].copy_from_slice(&STATION.0);
            let asker_ip: [u8; 4] = frame[26..30].try_into().unwrap();
            frame[26..30].copy_from_slice(&STATION_IP);
            frame[30..34].copy_from_slice(&asker_ip);
            frame[34] = 0;
            frame[36..38].fill(0);
            let sum = Sum::default().bytes(&frame[34..]).finish();
            frame[36..38].copy_from_slice(&sum);
            Some(frame)
        }
        _ => None,
    }
}

#[test]
fn a_linux_vxlan_device_reaches_a_station_through_its_move_and_after() {
    let spaces = Spaces::new();
    nix::sched::setns(File::open(format!("/run/netns/{}-p", spaces.0)).unwrap(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let kernel_mac = spaces.kernel_mac();
    let bind = |port: u16| {
        let net = format!("vni=42,mac={STATION},local=10.77.0.1:{port},peer={kernel_mac}@10.77.0.2:4789");
        lan::Lan::bind(&net.parse().unwrap(), None).unwrap()
    };
    let (old, new) = (bind(4700), bind(4701));
    spaces.station_is_at(4700);

    let station = Station::start(old.port().unwrap());
    assert_no_loss(spaces.ping(20), 20);

    // The move: the station stops, its addresses travel, the old place forwards while the kernel's entries are old.
    let pings = spaces.ping(100);
    thread::sleep(Duration::from_millis(500));
    let saved = station.stop().saved();
    let mut arrived = new.port().unwrap();
    arrived.restore(&saved).unwrap();
    arrived.announce();
    let forwarder = old.forwarder(new.local(), Instant::now() + Duration::from_secs(5));
    let forwarding = thread::spawn(move || forwarder.run().unwrap());
    let station = Station::start(arrived);
    assert_no_loss(pings, 100);

    // The kernel forgets the address; the announcement alone must bring it back (arp_accept).
    spaces.station_is_at(4701);
    ip(&format!("-n {}-k neigh flush dev vx", spaces.0));
    let mut port = station.stop();
    port.announce();
    port.tick(Instant::now());
    let started = Instant::now();
    while !run("ip", &format!("-n {}-k neigh show 192.168.77.1", spaces.0)).contains(&STATION.to_string()) {
        assert!(started.elapsed() < LONGEST, "the gratuitous ARP was not heard");
        thread::sleep(Duration::from_millis(10));
    }

    let station = Station::start(port);
    assert_no_loss(spaces.ping(20), 20);
    // The kernel speaks to everyone at times: nothing more is relayed when the station stops.
    let relayed = forwarding.join().unwrap();
    let mut port = station.stop();
    while port.receive().unwrap().is_some() {}
    assert!(relayed.relayed >= 40, "{relayed:?}");
    assert!(new.counters().rx_datagrams >= relayed.relayed + 20, "{:?}", new.counters());
    assert_eq!((old.counters().lost(), new.counters().lost()), (0, 0));
}
