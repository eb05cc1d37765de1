//! Every command line is understood, and a wrong one gives one line that names what is wrong.

use clap::CommandFactory as _;
use rebec_api::vm::OnHostLoss;

use super::{values::TextFrom, *};

fn parse(line: &str) -> Cli {
    match parse_from(line.split_whitespace()) {
        Ok(cli) => cli,
        Err(no) => panic!("`{line}` gave {no:?}"),
    }
}

fn refused(line: &str) -> String {
    match parse_from(line.split_whitespace()) {
        Err(NoCommand::Usage(message)) => message,
        other => panic!("`{line}` gave {other:?}"),
    }
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_line_is_understood() {
    for line in [
        "agent --keep-time",
        "agent --bring-up-links --ip 10.0.0.2/24@eth1 --vlan 7,8@eth0 --keep-time --ntp 10.0.0.1,fd00::1 --address fd00::2",
        "pool init lab --domain alpha",
        "pool join rebec1abc",
        "pool join @/run/ticket",
        "pool join -",
        "pool status --json",
        "pool leave",
        "domain invite beta --uses 2 --valid 30m",
        "domain ls",
        "policy show",
        "policy set p.toml",
        "contract ls",
        "contract show 1a2b",
        "contract propose beta --machines 2 --memory 1G --vcpus 2 --lan office --vm web",
        "contract accept 1a2b",
        "contract recall 1a2b --reason maintenance",
        "demand set 3 --running 2 --widest 2",
        "demand follow --every 30s -- squeue --json",
        "plan",
        "why web",
        "account",
        "host ls",
        "host show a1",
        "host invite --uses 3 --valid 7d",
        "host invite --role viewer",
        "host set-role a2 none",
        "host set a2 --label rack=r1 --no-label disk",
        "vm run web --image debian --where rack=r1 --label app=web --affinity db --anti-affinity app=web --explain",
        "host drain a1",
        "host drain a1 --undo",
        "host declare-dead a1 --reason unplugged",
        "invitation ls",
        "invitation revoke i1",
        "image import debian --kernel k --initramfs i --cmdline quiet --disk d",
        "image import debian debian.qcow2",
        "image import debian debian.qcow2 --cmdline quiet --domain beta",
        "image ls",
        "image show debian",
        "image rm debian",
        "vm set web --cpu-quota 150% --cpu-weight 200 --net 200M --disk-iops 5000 --disk-bytes none",
        "vm resize-disk web 30G",
        "vm resize-disk web 30G --disk data",
        "vm disk add web data 10G",
        "vm disk rm web data",
        "lan create office --range 10.5.0.0/24",
        "lan create office",
        "lan create office --mtu 8900",
        "lan ls",
        "lan show office",
        "lan show office --matrix --svg office.svg",
        "lan rm office",
        "vm run web --image debian",
        "vm ls",
        "vm show web",
        "vm console web",
        "vm logs web --follow --tail 64K",
        "vm logs -f web",
        "vm stop web",
        "vm stop web --timeout 0 --detach",
        "vm start web --detach",
        "vm start web --wait",
        "vm rm web",
        "vm move web",
        "vm move web --domain beta -d",
        "vm forward web 22",
        "vm forward web 80 --listen [::1]:8080",
        "user key",
        "user add anna --key 0707070707070707070707070707070707070707070707070707070707070707 --role operator --valid 30d",
        "user ls",
        "user rm anna",
        "vm ls --user-key /k",
        "token create laptop",
        "token create guest --role viewer --valid 30d",
        "token ls",
        "token rm laptop",
        "audit",
        "audit --tail 20 --json",
        "audit verify",
        "job ls",
        "job show j1",
        "support-bundle --out -",
        "policy check p.toml --json",
        "simulate --domain a=a.swf,cpus=4",
        "simulate --domain a=a.swf.gz,cpus=4 --domain b=b.swf,cpus=9,policy=p.toml --reclaim wait --interval 30m --seed 9 --json --plots /tmp/p",
        "simulate spot a.json b.json.gz --work 10h --deadline 12h --price 4 --restart 6m --move 9s --notice 30s --jobs 9 --json",
        "simulate --domain a=a.swf,cpus=4 --boot 1s --halt 1s --slowdown 0 --move 3s --move-next 2s",
        "completion bash",
        "man /tmp/man",
    ] {
        parse(&format!("rebec {line}"));
    }
}

#[test]
fn a_full_run_and_a_full_move() {
    let line = "rebec vm run web --image debian --memory 2G --vcpus 4 --lan a --lan b --host a1 --cmdline quiet --hostname web \
                --ssh-key k.pub --ssh-key l.pub --user-data u --disk-size 20G --on-host-loss restart --detach";
    let Command::Vm(VmCommand::Run(run)) = parse(line).command else { panic!("not a run") };
    assert_eq!((run.name.as_str(), run.image.as_str(), run.memory.bytes(), run.vcpus), ("web", "debian", 2 << 30, 4));
    assert_eq!((run.lans.len(), run.ssh_keys.len(), run.patience.detach), (2, 2, true));
    assert_eq!(run.disk_size.map(rebec_vmm_api::DiskSize::bytes), Some(20 << 30));
    assert_eq!(OnHostLoss::from(run.on_host_loss), OnHostLoss::Restart);
    let line = "rebec vm move web --to b1 --streams 4 --downtime-max-ms 50 --bandwidth-max-mbit 100";
    let Command::Vm(VmCommand::Move(options)) = parse(line).command else { panic!("not a move") };
    assert_eq!((options.to.as_deref(), options.streams), (Some("b1"), Some(4)));
    assert_eq!((options.downtime_max_ms, options.bandwidth_max_mbit, options.patience.detach), (Some(50), Some(100), false));
}

#[test]
fn what_is_left_out_has_a_default() {
    let Command::Vm(VmCommand::Run(run)) = parse("rebec vm run web --image debian").command else { panic!("not a run") };
    assert_eq!((run.memory.bytes(), run.vcpus, run.patience.detach), (512 << 20, 1, false));
    assert_eq!(OnHostLoss::from(run.on_host_loss), OnHostLoss::Hold);
    let Command::Host(HostCommand::Invite { terms, role: HostRoleName::Operator }) = parse("rebec host invite").command else {
        panic!("not an invitation")
    };
    assert_eq!((terms.uses, terms.valid.0), (1, 86_400));
    let Command::Token(TokenCommand::Create { role, valid, .. }) = parse("rebec token create me").command else { panic!("not a token") };
    assert_eq!((role, valid), (RoleName::Admin, None));
    let Command::Vm(VmCommand::Forward { listen, .. }) = parse("rebec vm forward web 22").command else { panic!("not a forward") };
    assert!(listen.ip().is_loopback() && listen.port() == 0);
    let Command::Pool(PoolCommand::Join { ticket }) = parse("rebec pool join @t").command else { panic!("not a join") };
    assert_eq!(ticket, TextFrom::File("t".into()));
}

#[test]
fn which_agent_may_stand_before_and_after_the_command() {
    let before = parse("rebec --socket /a --json vm ls");
    let after = parse("rebec vm ls --json --socket /a");
    assert_eq!(before.agent, after.agent);
    assert!(before.json && after.json);
    let key = "0f".repeat(32);
    let elsewhere = parse(&format!("rebec vm ls --host-url https://10.0.0.1:7117 --fingerprint {key} --token-file t"));
    assert_eq!(elsewhere.agent.fingerprint, Some(HostKey([15; 32])));
}

#[test]
fn what_is_wrong_is_said_in_one_line_that_names_it() {
    for (line, names) in [
        ("rebec", "[subcommands: pool, domain"),
        ("rebec fly", "fly"),
        ("rebec pool", "[subcommands: init, join"),
        ("rebec vm", "[subcommands: run, ls"),
        ("rebec agent --ntp 10.0.0.1", "--keep-time"),
        ("rebec agent --keep-time --ntp pool", "--ntp"),
        ("rebec pool init lab", "--domain"),
        ("rebec pool join", "TICKET"),
        ("rebec pool join @", "file's name"),
        ("rebec domain invite", "NAME"),
        ("rebec host invite --uses 0", "--uses"),
        ("rebec host invite --valid soon", "30m, 24h or 7d"),
        ("rebec host declare-dead a1", "--reason"),
        ("rebec image import debian", "DISK"),
        ("rebec image import debian d --disk d", "--disk"),
        ("rebec image import debian d --initramfs i", "--kernel"),
        ("rebec vm run web", "--image"),
        ("rebec vm run --image debian", "NAME"),
        ("rebec vm run web --image d --memory 15M", "15M"),
        ("rebec vm run web --image d --vcpus 17", "17"),
        ("rebec vm run web --image d --on-host-loss pray", "pray"),
        ("rebec vm run web --image d --host a --domain b", "--domain"),
        ("rebec vm run web --image d --lan a --lan a", "--lan `a`"),
        ("rebec vm run web --image d --wait --detach", "--detach"),
        ("rebec vm move web --to a --domain b", "--domain"),
        ("rebec vm move web --streams 17", "17"),
        ("rebec vm move web --downtime-max-ms 0", "--downtime-max-ms"),
        ("rebec vm forward web", "PORT"),
        ("rebec vm forward web 0", "0"),
        ("rebec vm forward web 65536", "65536"),
        ("rebec vm forward web 22 --listen here", "here"),
        ("rebec vm logs web --tail all", "4096, 64K or 1M"),
        ("rebec vm ls --colour blue", "--colour"),
        ("rebec vm ls --socket /a --host-url https://b", "--host-url"),
        ("rebec vm ls --fingerprint 12", "64 hexadecimal digits"),
        ("rebec token create a --role king", "king"),
        ("rebec token create a --valid 0d", "30m, 24h or 7d"),
        ("rebec audit verify --known 12", "64 digits"),
        ("rebec audit --tail 0", "--tail"),
        ("rebec audit --tail 5 verify", "verify"),
        ("rebec policy check", "FILE"),
        ("rebec simulate", "--domain"),
        ("rebec simulate --domain a=a.swf", "cpus=N"),
        ("rebec vm set web", "--cpu-quota"),
        ("rebec simulate spot", "<FILE>"),
        ("rebec simulate spot a.json --deadline 24h", "--deadline"),
        ("rebec simulate --domain a=a,cpus=1 spot a.json", "spot"),
        ("rebec simulate --domain a=a,cpus=1 --domain a=b,cpus=1", "--domain a"),
        ("rebec simulate --domain a=a,cpus=1 --reclaim pray", "pray"),
        ("rebec simulate --domain a=a,cpus=1 --interval 0h", "--interval"),
        ("rebec completion dos", "dos"),
    ] {
        let message = refused(line);
        assert!(message.contains(names), "`{line}`: {message}");
        assert!(!message.contains('\n') && !message.contains("error:") && message.len() < 250, "`{line}`: {message}");
    }
}

#[test]
fn help_lists_every_noun_and_the_exit_codes() {
    let Err(NoCommand::Answered(help)) = parse_from(["rebec", "--help"]) else { panic!("no help") };
    for word in [
        "pool",
        "domain",
        "host",
        "invitation",
        "image",
        "lan",
        "vm",
        "token",
        "audit",
        "job",
        "policy",
        "simulate",
        "support-bundle",
        "Exit codes",
    ] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
}
