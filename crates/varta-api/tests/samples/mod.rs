//! A fact of every kind, and of every wording of a kind.

mod recovery;

use varta_core::fact::{
    Level, LineKind, LineOwner, ProcessDescription, ResumeCause, StopCause, Transport,
};
use varta_core::{
    Agent, AgentRef, Counter, ExitStatus, Fact, JoinedFrom, Limit, Refusal, Sender, UID_UNKNOWN,
};
use varta_vlp::{DecodeError, Status};

/// The kinds of facts, and the kind of a fact. A kind that is missing in this list does not compile.
macro_rules! kinds {
    ($($kind:ident),+ $(,)?) => {
        pub(crate) const KINDS: &[&str] = &[$(stringify!($kind)),+];

        pub(crate) fn kind(fact: &Fact) -> &'static str {
            match fact {
                $(Fact::$kind { .. } => stringify!($kind),)+
            }
        }
    };
}

kinds! {
    Beat,
    Joined,
    SessionBegan,
    SessionsChanged,
    Critical,
    Late,
    Stalled,
    StallPutOff,
    StallExcused,
    Returned,
    Exited,
    Evicted,
    Paused,
    Resumed,
    Refused,
    Flood,
    Gap,
    NetworkDrops,
    ReceiveFailed,
    ReceiveBlocked,
    ReceiveRestored,
    DescriptorsHang,
    ExitsUnwatched,
    AgentsMissing,
    AgentsComplete,
    RecoveryDeferred,
    WaitsForPermit,
    WaitsForUserBudget,
    RecoveryRefused,
    StepRehearsed,
    ProgramStarted,
    ProgramEnded,
    Signalled,
    StepFailed,
    StepPostponed,
    Recovered,
    GaveUp,
    Hold,
    HookRehearsed,
    HookDropped,
    HookWithdrawn,
    HookEnded,
    LinesOverRate,
    LinesUnread,
    Started,
    CountersSoFar,
    Stopped,
    Notice,
}

type Samples = Vec<(String, Fact)>;

/// All of them.
pub(crate) fn all() -> Samples {
    let mut samples = Samples::new();
    agents(&mut samples);
    silences(&mut samples);
    ends(&mut samples);
    refusals(&mut samples);
    receiving(&mut samples);
    recovery::waits(&mut samples);
    recovery::programs(&mut samples);
    recovery::failures(&mut samples);
    recovery::holds(&mut samples);
    recovery::hooks(&mut samples);
    observer(&mut samples);
    samples
}

fn put(samples: &mut Samples, name: &str, fact: Fact) {
    samples.push((name.to_owned(), fact));
}

fn web() -> AgentRef {
    AgentRef {
        agent: Agent {
            slot: 0,
            pid: 7,
            instance: 1,
            stream: 0,
        },
        name: "web".to_owned(),
        address: None,
        uid: Some(1000),
    }
}

fn db() -> AgentRef {
    AgentRef {
        agent: Agent {
            pid: 8,
            ..web().agent
        },
        name: "db".to_owned(),
        address: Some("10.0.0.9".parse().unwrap()),
        uid: None,
    }
}

fn nameless(agent: &AgentRef) -> AgentRef {
    AgentRef {
        name: String::new(),
        ..agent.clone()
    }
}

fn agents(samples: &mut Samples) {
    let here = |uid| JoinedFrom::Local {
        uid,
        exit_watched: true,
    };
    let there = |sealed| JoinedFrom::Remote {
        address: "10.0.0.9".parse().unwrap(),
        sealed,
    };
    let process = ProcessDescription {
        exe: Some("/usr/bin/web".into()),
        cgroup: Some("/system.slice/web.service".to_owned()),
        unit: Some("web.service".to_owned()),
        user_unit: Some("app.service".to_owned()),
        start_ticks: Some(4242),
        pid_ns: Some(4_026_531_836),
        inner_pid: Some(3),
    };
    let joined = |agent, from, process, status, payload, nonce| Fact::Joined {
        agent,
        from,
        process,
        status,
        payload,
        nonce,
    };
    let beat = Fact::Beat {
        agent: web().agent,
        status: Status::Ok,
        payload: 5,
        nonce: 1,
    };
    put(samples, "beat", beat);
    let fact = joined(web(), here(1000), Some(process), Status::Ok, 5, 1);
    put(samples, "joined", fact);
    let fact = joined(
        nameless(&web()),
        here(UID_UNKNOWN),
        None,
        Status::Degraded,
        0,
        9,
    );
    put(samples, "joined_without_credentials", fact);
    let fact = joined(db(), there(true), None, Status::Ok, 5, 1);
    put(samples, "joined_sealed", fact);
    let fact = joined(nameless(&db()), there(false), None, Status::Critical, 5, 1);
    put(samples, "joined_in_clear", fact);
    for (name, agent, count) in [("session_began", web(), 1), ("sessions_began", db(), 3)] {
        let fact = Fact::SessionBegan {
            agent,
            status: Status::Ok,
            payload: 5,
            nonce: 1,
            count,
        };
        put(samples, name, fact);
    }
    for (name, sessions) in [("sessions_changed", 2), ("sessions_over", 1)] {
        let agent = db();
        put(samples, name, Fact::SessionsChanged { agent, sessions });
    }
}

fn silences(samples: &mut Samples) {
    let agent = web;
    let critical = Fact::Critical {
        agent: agent(),
        nonce: 12,
        payload: 6,
    };
    put(samples, "critical", critical);
    let late = Fact::Late {
        agent: agent(),
        last_nonce: 12,
        silence_ns: 1_234_567_890,
    };
    put(samples, "late", late);
    for refused in [0, 1, 3] {
        let fact = Fact::Stalled {
            agent: agent(),
            last_nonce: 12,
            silence_ns: 5_001_234_567,
            threshold_ns: 5_000_000_000,
            refused,
        };
        put(samples, &format!("stalled_{refused}_refused"), fact);
    }
    for (name, agent, count) in [("stall_put_off", web(), 1), ("stalls_put_off", db(), 2)] {
        let fact = Fact::StallPutOff {
            agent,
            silence_ns: 5_000_000_000,
            count,
        };
        put(samples, name, fact);
    }
    let excused = Fact::StallExcused {
        agent: agent(),
        silence_ns: 1_500_000_000,
        threshold_ns: 60_000_000_000,
    };
    put(samples, "stall_excused", excused);
    let returned = Fact::Returned {
        agent: agent(),
        silence_ns: 7_654_321_000,
        status: Status::Ok,
        payload: 6,
        nonce: 13,
    };
    put(samples, "returned", returned);
}

fn ends(samples: &mut Samples) {
    for (name, status) in [
        ("exited_cleanly", ExitStatus::Code(0)),
        ("exited_with_code", ExitStatus::Code(3)),
        ("exited_by_signal", ExitStatus::Signal(9)),
        ("exited_by_real_time_signal", ExitStatus::Signal(34)),
        ("exited_with_goodbye", ExitStatus::Goodbye),
        ("exited_unknown", ExitStatus::Unknown),
    ] {
        let fact = Fact::Exited {
            agent: web(),
            last_nonce: 12,
            status,
        };
        put(samples, name, fact);
    }
    put(samples, "evicted", Fact::Evicted { agent: web() });
    let paused = Fact::Paused {
        agent: web(),
        duration_ns: 90_500_000_000,
        reason: Some("upgrade".to_owned()),
    };
    put(samples, "paused", paused);
    let paused = Fact::Paused {
        agent: db(),
        duration_ns: 3_600_000_000_000,
        reason: None,
    };
    put(samples, "paused_without_reason", paused);
    for (name, cause) in [
        ("resumed", ResumeCause::Operator),
        ("pause_expired", ResumeCause::Expired),
    ] {
        let agent = web();
        put(samples, name, Fact::Resumed { agent, cause });
    }
}

fn refusals(samples: &mut Samples) {
    let local = Sender {
        pid: 7,
        source: None,
    };
    let unknown = Sender { pid: 0, ..local };
    let remote = Sender {
        pid: 8,
        source: Some(("10.0.0.9".parse().unwrap(), 4711)),
    };
    let nowhere = Sender {
        pid: 0,
        source: Some(("::1".parse().unwrap(), 4711)),
    };
    let decode = Refusal::Decode;
    let crc = DecodeError::BadCrc {
        expected: 1,
        actual: 2,
    };
    for (sender, reason) in [
        (local, Refusal::ControlTruncated),
        (local, Refusal::WrongLength),
        (nowhere, Refusal::WrongLength),
        (unknown, Refusal::NoCredentials),
        (unknown, Refusal::UnseenSender),
        (local, Refusal::ForeignUser { uid: 33, gid: 34 }),
        (local, Refusal::UnmappedUser { uid: 65_534 }),
        (local, decode(DecodeError::BadMagic)),
        (local, decode(crc)),
        (local, Refusal::PidAboveMax { claimed: 5_000_000 }),
        (local, Refusal::PidMismatch { claimed: 43 }),
        (local, Refusal::UnverifiedClaim { claimed: 43 }),
        (local, Refusal::UnprovedSender),
        (local, Refusal::SenderEnded),
        (local, Refusal::Crowded),
        (local, Refusal::ForeignNamespace),
        (local, Refusal::RateLimited(Limit::Agent)),
        (local, Refusal::RateLimited(Limit::Global)),
        (local, Refusal::RateLimited(Limit::Newcomers)),
        (local, Refusal::RateLimited(Limit::Comebacks)),
        (remote, Refusal::RateLimited(Limit::Sessions)),
        (local, Refusal::OriginConflict),
        (local, Refusal::NamespaceConflict),
        (local, Refusal::OutOfOrder),
        (local, Refusal::CapacityExceeded),
        (remote, Refusal::CapacityExceeded),
        (local, Refusal::UserShareExceeded { uid: 1000 }),
        (nowhere, Refusal::Undecryptable),
        (remote, Refusal::Replayed),
        (remote, Refusal::SessionNotNewer),
        (remote, Refusal::TooManySessions),
        (remote, Refusal::SendersFull),
    ] {
        let refused = |count| Fact::Refused {
            sender,
            reason,
            count,
        };
        let network = sender.source.map_or("", |_| "_over_network");
        let name = format!("refused_{}{network}", reason.label());
        put(samples, &name, refused(1));
        if reason == Refusal::OutOfOrder {
            put(samples, "refused_several", refused(3));
        }
    }
    for (name, pid, one_in) in [
        ("flood_of_no_frames", 0, 64),
        ("flood_of_an_agent", 7, 64),
        ("flood_over", 7, 1),
    ] {
        put(samples, name, Fact::Flood { pid, one_in });
    }
}

fn receiving(samples: &mut Samples) {
    for (name, count) in [("gap", 1), ("gaps", 3)] {
        let late_ns = 1_234_567_890;
        put(samples, name, Fact::Gap { late_ns, count });
    }
    for (name, count) in [("network_drop", 1), ("network_drops", 2)] {
        put(samples, name, Fact::NetworkDrops { count });
    }
    for (name, transport) in [
        ("receive_failed_unix", Transport::Unix),
        ("receive_failed_udp", Transport::Udp),
    ] {
        let errno = 1;
        put(samples, name, Fact::ReceiveFailed { transport, errno });
    }
    put(samples, "receive_blocked", Fact::ReceiveBlocked);
    let restored = Fact::ReceiveRestored {
        transport: Transport::Unix,
        after_ns: 1_234_567_890,
    };
    put(samples, "receive_restored", restored);
    for threads in [0, 1, 3] {
        let fact = Fact::DescriptorsHang {
            threads,
            threads_max: 64,
        };
        put(samples, &format!("descriptors_hang_{threads}"), fact);
    }
    put(samples, "exits_unwatched", Fact::ExitsUnwatched);
    for (name, selection, expected, present, within_s) in [
        ("agents_missing", "web.service", 3, 1, 90),
        ("agent_missing", "web", 1, 0, 5),
    ] {
        let fact = Fact::AgentsMissing {
            selection: selection.to_owned(),
            expected,
            present,
            within_ns: within_s * 1_000_000_000,
        };
        put(samples, name, fact);
    }
    let selection = "web.service".to_owned();
    put(
        samples,
        "agents_complete",
        Fact::AgentsComplete { selection },
    );
}

fn observer(samples: &mut Samples) {
    for (name, owner) in [
        ("lines_over_rate_of_user", LineOwner::User(1000)),
        (
            "lines_over_rate_of_address",
            LineOwner::Address("10.0.0.9".parse().unwrap()),
        ),
        ("lines_over_rate_of_others", LineOwner::Others),
    ] {
        let fact = Fact::LinesOverRate {
            owner,
            counts: vec![
                (LineKind::Join, 2),
                (LineKind::Exit, 1),
                (LineKind::Critical, 3),
                (LineKind::Late, 4),
                (LineKind::Hook, 5),
            ],
            within_ns: 1_001_000_000,
            per_second: 20,
        };
        put(samples, name, fact);
    }
    put(samples, "lines_unread", Fact::LinesUnread { count: 3 });
    let started = Fact::Started {
        pid: 42,
        socket: "/run/varta/varta.sock".into(),
        udp: Some("0.0.0.0:9000".parse().unwrap()),
        http: Some("127.0.0.1:8278".parse().unwrap()),
        control: Some("/run/varta/varta.sock.control".into()),
        threshold_ns: 1_500_000_000,
        banner: "varta-watch listens\nstalled: silent for 1s 500ms".to_owned(),
    };
    put(samples, "started", started);
    let counters = || {
        vec![
            (Counter::BeatsAccepted, 3),
            (Counter::Joins, 1),
            (Counter::ExitsLeft, 2),
            (Counter::GapNanoseconds, 1_500_000_000),
            (Counter::QueueFull, 1),
        ]
    };
    let so_far = Fact::CountersSoFar {
        counters: counters(),
    };
    put(samples, "counters_so_far", so_far);
    for (name, cause) in [
        ("stopped_by_interrupt", StopCause::Interrupt),
        ("stopped_by_terminate", StopCause::Terminate),
        ("stopped_by_time", StopCause::TimeIsUp),
    ] {
        let counters = counters();
        put(samples, name, Fact::Stopped { cause, counters });
    }
    for (name, level, text) in [
        ("notice", Level::Info, "worth knowing"),
        ("warning", Level::Warn, "needs attention"),
        ("error", Level::Error, "does not\u{1b}[2J work"),
    ] {
        let text = text.to_owned();
        put(samples, name, Fact::Notice { level, text });
    }
}
