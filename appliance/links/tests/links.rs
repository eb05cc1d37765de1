//! A link gets its addresses from a real DHCP server and a real router's advertisements (dnsmasq is both) over a pair of interfaces in two
//! network namespaces. Needs root, iproute2 and dnsmasq-base.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    cell::RefCell,
    fs::File,
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use rebec_links::{Addressing, LinkState, Policy, Progress, bring_up};

struct Net {
    names: [String; 2],
    server: Option<Child>,
}

impl Net {
    fn make(tag: &str) -> Self {
        let name = |end: &str| format!("rebec-links-{tag}-{end}-{}", std::process::id());
        let net = Self { names: [name("client"), name("server")], server: None };
        for name in &net.names {
            run(&["netns", "add", name]);
        }
        let [client, server] = &net.names;
        run(&["-n", client, "link", "add", "c0", "type", "veth", "peer", "name", "s0", "netns", server]);
        run(&["-n", server, "addr", "add", "10.9.0.1/24", "dev", "s0"]);
        run(&["-n", server, "link", "set", "s0", "up"]);
        net
    }

    fn serve(&mut self, what: &[&str]) {
        if let Some(mut before) = self.server.take() {
            before.kill().unwrap();
            before.wait().unwrap();
        }
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[1], "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]);
        command.args(["--no-ping", "--interface=s*", "--dhcp-leasefile=/dev/null", "--user=root", "--pid-file"]).args(what);
        self.server = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn enter(&self) {
        setns(File::open(format!("/run/netns/{}", self.names[0])).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    }

    fn client_says(&self, args: &[&str]) -> String {
        let output = Command::new("ip").args(["-n", &self.names[0]]).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().ok();
            server.wait().ok();
        }
        for name in &self.names {
            Command::new("ip").args(["netns", "del", name]).status().ok();
        }
    }
}

fn run(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

/// Brings up `c0` until `enough` says so, and returns what was told.
fn told(policy: Policy, enough: impl Fn(&LinkState) -> bool) -> Vec<LinkState> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (done, seen) = (tokio::sync::Notify::new(), RefCell::new(Vec::new()));
        let tell = |state: LinkState| {
            if enough(&state) {
                done.notify_one();
            }
            seen.borrow_mut().push(state);
        };
        let limit = Duration::from_secs(40);
        tokio::select! {
            ended = bring_up(policy, tell) => panic!("ended: {ended:?}"),
            () = done.notified() => {}
            () = tokio::time::sleep(limit) => panic!("not within {limit:?}: {:?}", seen.borrow()),
        }
        seen.into_inner()
    })
}

fn policy(addressing: Addressing, folder: &std::path::Path) -> Policy {
    let only = Some(vec!["lo".to_owned(), "c0".to_owned()]);
    Policy { addressing, vlans: vec![], hostname: Some("spare-1".to_owned()), resolv_conf: folder.join("resolv.conf"), only }
}

fn is_failed(state: &LinkState) -> bool {
    matches!(state.progress, Progress::Failed(_))
}

fn is_ready(state: &LinkState) -> bool {
    matches!(state.progress, Progress::Ready { .. })
}

#[test]
fn a_link_gets_its_address_route_and_name_server_by_dhcp() {
    let folder = tempfile::tempdir().unwrap();
    let mut net = Net::make("dhcp");
    net.serve(&[
        "--dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m",
        "--dhcp-option=option:router,10.9.0.1",
        "--dhcp-option=option:dns-server,10.9.0.1",
        "--dhcp-option=option:ntp-server,10.9.0.1,10.9.0.2",
    ]);
    net.enter();
    let states = told(policy(Addressing::Dhcp, folder.path()), is_ready);
    let ready = states.last().map(|state| state.progress.clone());
    let Some(Progress::Ready { address, gateway, time_servers }) = ready else { panic!("{states:?}") };
    assert_eq!(time_servers, [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)]);
    assert_eq!((address.0.octets()[..3].to_vec(), address.1, gateway), (vec![10, 9, 0], 24, Some([10, 9, 0, 1].into())));
    assert!(net.client_says(&["addr", "show", "dev", "c0"]).contains(&format!("inet {}/24", address.0)));
    assert!(net.client_says(&["route"]).contains("default via 10.9.0.1 dev c0"));
    assert_eq!(std::fs::read_to_string(folder.path().join("resolv.conf")).unwrap(), "nameserver 10.9.0.1\n");
}

/// What providers of machines give: an address alone, and a router that no network of it holds.
#[test]
fn a_router_outside_the_subnet_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut net = Net::make("alone");
    net.serve(&["--dhcp-range=10.9.0.42,10.9.0.42,2m", "--dhcp-option=1,255.255.255.255", "--dhcp-option=option:router,192.168.0.2"]);
    net.enter();
    let states = told(policy(Addressing::Dhcp, folder.path()), |state| is_ready(state) || is_failed(state));
    assert!(is_ready(states.last().unwrap()), "{states:?}");
    assert!(net.client_says(&["addr", "show", "dev", "c0"]).contains("inet 10.9.0.42/32"));
    assert!(net.client_says(&["route"]).contains("default via 192.168.0.2 dev c0"), "{}", net.client_says(&["route"]));
}

#[test]
fn a_fixed_address_alone_has_its_router_on_its_link() {
    let folder = tempfile::tempdir().unwrap();
    let net = Net::make("fixed");
    net.enter();
    let states = told(policy("10.9.0.42/32,192.168.0.2@c0".parse().unwrap(), folder.path()), |state| is_ready(state) || is_failed(state));
    assert!(is_ready(states.last().unwrap()), "{states:?}");
    assert!(net.client_says(&["route"]).contains("default via 192.168.0.2 dev c0"), "{}", net.client_says(&["route"]));
}

#[test]
fn routes_of_a_lease_stand_in_place_of_its_router() {
    let folder = tempfile::tempdir().unwrap();
    let mut net = Net::make("routes");
    let routes = "--dhcp-option=option:classless-static-route,10.20.0.0/16,10.9.0.7,192.168.9.0/24,0.0.0.0,0.0.0.0/0,10.9.0.1";
    net.serve(&["--dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m", "--dhcp-option=option:router,10.9.0.254", routes]);
    net.enter();
    let states = told(policy(Addressing::Dhcp, folder.path()), |state| is_ready(state) || is_failed(state));
    let Some(Progress::Ready { gateway, .. }) = states.last().map(|state| state.progress.clone()) else { panic!("{states:?}") };
    let routes = net.client_says(&["route"]);
    assert_eq!(gateway, Some([10, 9, 0, 1].into()));
    for route in ["default via 10.9.0.1 dev c0", "10.20.0.0/16 via 10.9.0.7 dev c0", "192.168.9.0/24 dev c0 proto static scope link"] {
        assert!(routes.lines().any(|line| line.starts_with(route)), "{route}: {routes}");
    }
    assert!(!routes.contains("10.9.0.254"), "{routes}");
}

/// A cable that is pulled for a moment changes nothing; one that is plugged in elsewhere leaves nothing of before.
#[test]
fn a_link_that_is_back_keeps_its_address_where_it_is_and_not_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut net = Net::make("moved");
    net.serve(&["--dhcp-authoritative", "--dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m"]);
    net.enter();
    let net = RefCell::new(net);
    let pull = || run(&["-n", &net.borrow().names[1], "link", "set", "s0", "down"]);
    let has = |text: &str| net.borrow().client_says(&["addr", "show", "dev", "c0"]).contains(text);
    let (first, times) = (RefCell::new(None), RefCell::new(0));
    let step = |state: &LinkState| {
        match &state.progress {
            Progress::Ready { address: (address, _), .. } => {
                let known = *first.borrow_mut().get_or_insert(*address);
                *times.borrow_mut() += 1;
                match *times.borrow() {
                    1 => pull(),
                    2 => {
                        assert_eq!(known, *address, "the network is the same");
                        pull();
                    }
                    _ => return true,
                }
            }
            Progress::NoCarrier => {
                // It is there all the time that the cable is not.
                assert!(has(&format!("inet {}/24", first.borrow().unwrap())));
                if *times.borrow() == 2 {
                    let server = net.borrow().names[1].clone();
                    run(&["-n", &server, "addr", "flush", "dev", "s0"]);
                    run(&["-n", &server, "addr", "add", "10.8.0.1/24", "dev", "s0"]);
                    run(&["-n", &server, "link", "set", "s0", "up"]);
                    net.borrow_mut().serve(&["--dhcp-authoritative", "--dhcp-range=10.8.0.50,10.8.0.60,255.255.255.0,2m"]);
                } else {
                    run(&["-n", &net.borrow().names[1], "link", "set", "s0", "up"]);
                }
            }
            _ => {}
        }
        false
    };
    let states = told(policy(Addressing::Dhcp, folder.path()), step);
    let Some(Progress::Ready { address: (address, _), .. }) = states.last().map(|state| state.progress.clone()) else {
        panic!("{states:?}")
    };
    assert!(has(&format!("inet {address}/24")) && !has("inet 10.9.0."), "{}", net.borrow().client_says(&["addr"]));
    assert_eq!(address.octets()[..3], [10, 8, 0]);
}

/// Each link asks for itself, whenever it comes.
#[test]
fn several_links_are_served_those_that_come_late_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut net = Net::make("several");
    net.serve(&[
        "--dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m",
        "--dhcp-range=10.8.0.50,10.8.0.60,255.255.255.0,2m",
        "--bind-dynamic",
    ]);
    net.enter();
    let [client, server] = &net.names;
    let late = |_: &LinkState| {
        run(&["-n", server, "link", "add", "s1", "type", "veth", "peer", "name", "c1", "netns", client]);
        run(&["-n", server, "addr", "add", "10.8.0.1/24", "dev", "s1"]);
        run(&["-n", server, "link", "set", "s1", "up"]);
    };
    let ready = RefCell::new(Vec::new());
    let policy = policy(Addressing::Dhcp, folder.path());
    let only = policy.only.iter().flatten().cloned().chain(["c1".to_owned()]).collect();
    let both = |state: &LinkState| {
        if is_ready(state) && !ready.borrow().contains(&state.interface) {
            if ready.borrow().is_empty() {
                late(state);
            }
            ready.borrow_mut().push(state.interface.clone());
        }
        ready.borrow().len() == 2
    };
    told(Policy { only: Some(only), ..policy }, both);
    assert_eq!(*ready.borrow(), ["c0", "c1"]);
    let addresses = net.client_says(&["-4", "addr"]);
    assert!(addresses.contains("inet 10.9.0.") && addresses.contains("inet 10.8.0."), "{addresses}");
}

#[test]
fn a_link_gets_an_ipv6_address_and_route_from_a_router_where_there_is_no_ipv4() {
    let folder = tempfile::tempdir().unwrap();
    let mut net = Net::make("routed");
    let [client, server] = &net.names;
    run(&["-n", server, "addr", "add", "2001:db8:7::1/64", "dev", "s0", "nodad"]);
    // As a machine whose kernel was told to hear no routers.
    for option in ["accept_ra", "autoconf"] {
        run(&["netns", "exec", client, "sh", "-c", &format!("echo 0 >/proc/sys/net/ipv6/conf/c0/{option}")]);
    }
    net.serve(&["--enable-ra", "--dhcp-range=2001:db8:7::,ra-only,64,10m"]);
    net.enter();
    let has_address = |state: &LinkState| matches!(&state.progress, Progress::Ipv6(addresses) if !addresses.is_empty());
    let states = told(policy(Addressing::Dhcp, folder.path()), has_address);
    let Some(Progress::Ipv6(addresses)) = states.last().map(|state| state.progress.clone()) else { panic!("{states:?}") };
    assert!(matches!(addresses[..], [(address, 64)] if address.segments()[..4] == [0x2001, 0xdb8, 7, 0]), "{addresses:?}");
    assert!(net.client_says(&["addr", "show", "dev", "c0"]).contains(&format!("inet6 {}/64 scope global", addresses[0].0)));
    assert!(net.client_says(&["-6", "route"]).contains("default via fe80:"));
    // It did not wait until DHCP had been asked in vain.
    assert!(states.iter().all(|state| !matches!(state.progress, Progress::Ready { .. } | Progress::Failed(_))), "{states:?}");
}

#[test]
fn a_link_takes_the_address_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let net = Net::make("static");
    net.enter();
    let states = told(policy("10.9.0.7/24,10.9.0.1".parse().unwrap(), folder.path()), is_ready);
    assert!(states.iter().any(is_ready));
    assert!(net.client_says(&["addr", "show", "dev", "c0"]).contains("inet 10.9.0.7/24"));
    assert!(net.client_says(&["route"]).contains("default via 10.9.0.1 dev c0"));
}

#[test]
fn a_fixed_address_is_one_links_and_goes_on_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let net = Net::make("both");
    let [client, server] = &net.names;
    run(&["-n", client, "link", "add", "c1", "type", "veth", "peer", "name", "s1", "netns", server]);
    run(&["-n", server, "link", "set", "s1", "up"]);
    net.enter();
    let has = |link: &str| net.client_says(&["addr", "show", "dev", link]).contains("inet 10.9.0.7/24");
    let first = RefCell::new(None::<String>);
    let policy = policy("10.9.0.7/24".parse().unwrap(), folder.path());
    let only = policy.only.iter().flatten().cloned().chain(["c1".to_owned()]).collect();
    let moved_on = |state: &LinkState| {
        let before = first.borrow().clone();
        match before {
            _ if !is_ready(state) => false,
            Some(before) => state.interface != before,
            None => {
                let here = state.interface.clone();
                assert!(has(&here) && ["c0", "c1"].into_iter().filter(|link| has(link)).count() == 1);
                run(&["-n", server, "link", "set", &here.replace('c', "s"), "down"]);
                first.replace(Some(here));
                false
            }
        }
    };
    told(Policy { only: Some(only), ..policy }, moved_on);
    let before = first.into_inner().unwrap();
    assert!(!has(&before) && ["c0", "c1"].into_iter().any(has));
}
