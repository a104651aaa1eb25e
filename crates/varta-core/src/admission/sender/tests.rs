//! Each decision about a local sender, as a table of facts and verdicts.

use std::cell::Cell;

use varta_vlp::{FRAME_BYTES, NONCE_TERMINAL, Status};

use super::*;
use crate::admission::{AllowedUsers, LimitOptions, Rate};
use crate::refusal::Limit;

const PID: u32 = 42;
const INSTANCE: u64 = 420;
const SECOND: u64 = 1_000_000_000;

const ROOM: Room = Room {
    in_table: true,
    for_events: true,
};

fn senders(refuse_foreign: bool) -> LocalSenders {
    let gate = LocalGate {
        users: AllowedUsers::Only {
            uids: [1000].into(),
            gids: [].into(),
        },
        nobody: None,
        pid_max: 32_768,
    };
    LocalSenders::new(gate, refuse_foreign)
}

fn limits() -> Limits {
    let mut limits = Limits::new(4, LimitOptions::default(), 0);
    limits.note_join(0, 0);
    limits
}

fn claiming(claimed: u32, nonce: u64) -> AttestedFrame {
    AttestedFrame {
        frame: Frame::new(Status::Ok, claimed, nonce, nonce, 0),
        sender: Credentials {
            pid: PID,
            uid: 1000,
            gid: 1000,
        },
    }
}

fn beat(nonce: u64) -> AttestedFrame {
    claiming(PID, nonce)
}

fn agent(instance: u64) -> Agent {
    Agent {
        slot: 0,
        pid: PID,
        instance,
        stream: 0,
    }
}

/// An agent that has sent nonce 10.
fn known() -> KnownSender {
    KnownSender {
        agent: agent(INSTANCE),
        last_nonce: Some(10),
        claims: None,
        hold: Hold::Held,
    }
}

fn info(pids: &[u32]) -> ProcessInfo {
    ProcessInfo {
        claims: Some(Claims::from_pids(pids)),
        ..ProcessInfo::default()
    }
}

fn query(instance: Option<u64>, sent_after_ns: Option<u64>) -> Verdict {
    Verdict::Ask(SenderQuery {
        ticket: 1,
        pid: PID,
        instance,
        sent_after_ns,
    })
}

fn never<T>() -> T {
    panic!("the decision does not depend on this");
}

fn judge_known(beat: &AttestedFrame, known: &KnownSender, proved: bool) -> Verdict {
    senders(false).judge_known(beat, known, proved, &mut limits(), 0, never)
}

fn judge_unknown(
    senders: &mut LocalSenders,
    beat: &AttestedFrame,
    found: FoundProcess,
    now_ns: u64,
) -> Verdict {
    senders.judge_unknown(beat, ROOM, 7, &mut limits(), now_ns, || found)
}

#[test]
fn a_known_agent_is_credited_without_any_further_fact() {
    for nonce in [11, 10, 1, NONCE_TERMINAL] {
        let verdict = judge_known(&beat(nonce), &known(), false);
        assert_eq!(verdict, Verdict::Credit, "{nonce}");
    }
}

#[test]
fn a_claim_is_right_wrong_or_asked_about() {
    let judge = |claimed, claims| {
        let known = KnownSender { claims, ..known() };
        judge_known(&claiming(claimed, 11), &known, false)
    };
    let inner = Some(Claims::from_pids(&[PID, 7, 1]));
    assert_eq!(judge(7, inner), Verdict::Credit);
    assert_eq!(judge(1, inner), Verdict::Credit);
    let lie = Refusal::PidMismatch { claimed: 8 };
    assert_eq!(judge(8, inner), Verdict::Refuse(lie));
    assert_eq!(judge(7, None), query(Some(INSTANCE), None));
}

#[test]
fn a_beat_that_a_limit_refuses_does_not_wait() {
    let rate = Rate {
        per_second: 1,
        burst: 1,
    };
    let options = LimitOptions {
        agent: Some(rate),
        global: None,
    };
    let mut limits = Limits::new(1, options, 0);
    limits.note_join(0, 0);
    let refused = Verdict::Refuse(Refusal::RateLimited(Limit::Agent));
    let mut senders = senders(false);
    for beat in [beat(11), claiming(7, 11)] {
        let verdict = senders.judge_known(&beat, &known(), false, &mut limits, 0, never);
        assert_eq!(verdict, refused);
    }
    assert_eq!(senders.next_pending(1).map(|beat| beat.frame), None);
}

#[test]
fn a_pid_that_may_have_passed_on_is_queried_for_its_owner() {
    let unidentified = agent(UNIDENTIFIED);
    let asked = |hold, agent, nonce, owner: Option<u64>| {
        let known = KnownSender {
            hold,
            agent,
            ..known()
        };
        let was_asked = Cell::new(false);
        let owner = || {
            was_asked.set(true);
            owner
        };
        let verdict =
            senders(false).judge_known(&beat(nonce), &known, false, &mut limits(), 0, owner);
        (was_asked.get(), verdict)
    };
    let this = agent(INSTANCE);
    for (hold, agent, nonce, owner, expected) in [
        (Hold::Ended, this, 11, None, (true, Verdict::Credit)),
        (
            Hold::Ended,
            this,
            11,
            Some(INSTANCE),
            (true, Verdict::Credit),
        ),
        (
            Hold::Ended,
            this,
            11,
            Some(9),
            (true, Verdict::RetireAndRefuse),
        ),
        (Hold::None, this, 11, Some(9), (false, Verdict::Credit)),
        (
            Hold::None,
            this,
            10,
            Some(9),
            (true, Verdict::RetireAndRefuse),
        ),
        (Hold::None, this, 10, None, (true, Verdict::Credit)),
        (
            Hold::None,
            unidentified,
            10,
            Some(9),
            (false, Verdict::Credit),
        ),
    ] {
        let found = asked(hold, agent, nonce, owner);
        assert_eq!(found, expected, "{hold:?} {agent:?} {nonce} {owner:?}");
    }
    let ended = KnownSender {
        hold: Hold::Ended,
        ..known()
    };
    assert_eq!(
        judge_known(&beat(11), &ended, true),
        Verdict::Credit,
        "it came along"
    );
}

#[test]
fn a_process_that_came_along_is_the_agents_or_its_successor() {
    assert!(!is_successor(agent(INSTANCE), Some(INSTANCE), never));
    assert!(is_successor(agent(INSTANCE), Some(9), never));
    assert!(is_successor(agent(INSTANCE), None, || true));
    assert!(!is_successor(agent(INSTANCE), None, || false));
}

#[test]
fn an_unknown_sender_joins_at_once_only_with_its_process_attached_and_its_own_pid() {
    let instance = Some(INSTANCE);
    let attached = FoundProcess::Attached(instance);
    let join = Verdict::Join { instance: INSTANCE };
    for (refuse_foreign, claimed, found, expected) in [
        (false, PID, attached, join),
        (true, PID, attached, query(instance, None)),
        (false, 7, attached, query(instance, None)),
        (false, PID, FoundProcess::Attached(None), query(None, None)),
        (
            false,
            PID,
            FoundProcess::Opened(instance),
            query(instance, Some(7)),
        ),
        (false, PID, FoundProcess::Opened(None), query(None, Some(7))),
        (false, PID, FoundProcess::Gone, Verdict::JoinAndLeave),
        (
            false,
            7,
            FoundProcess::Gone,
            Verdict::Refuse(Refusal::UnverifiedClaim { claimed: 7 }),
        ),
    ] {
        let mut senders = senders(refuse_foreign);
        let verdict = judge_unknown(&mut senders, &claiming(claimed, 1), found, 0);
        assert_eq!(verdict, expected, "{refuse_foreign} {claimed} {found:?}");
    }
}

#[test]
fn an_unknown_sender_is_not_examined_when_the_table_is_full() {
    for (room, expected) in [
        (
            Room {
                in_table: false,
                ..ROOM
            },
            Verdict::NoRoom,
        ),
        (
            Room {
                for_events: false,
                ..ROOM
            },
            Verdict::Refuse(Refusal::Crowded),
        ),
    ] {
        let mut senders = senders(false);
        let verdict = senders.judge_unknown(&beat(1), room, 0, &mut limits(), 0, never);
        assert_eq!(verdict, expected);
    }
}

#[test]
fn a_process_whose_end_was_reported_does_not_join_again() {
    let mut senders = senders(false);
    senders.note_end(PID, INSTANCE, 0);
    let refused = Verdict::Refuse(Refusal::SenderEnded);
    let attached = FoundProcess::Attached(Some(INSTANCE));
    assert_eq!(judge_unknown(&mut senders, &beat(1), attached, 5), refused);
    assert_eq!(
        judge_unknown(&mut senders, &beat(1), FoundProcess::Gone, 5),
        refused
    );
    let later_ns = 2 * SECOND;
    let verdict = judge_unknown(&mut senders, &beat(1), FoundProcess::Gone, later_ns);
    assert_eq!(
        verdict,
        Verdict::JoinAndLeave,
        "another one had the pid since"
    );
    let successor = FoundProcess::Attached(Some(9));
    let verdict = judge_unknown(&mut senders, &beat(1), successor, 5);
    assert_eq!(verdict, Verdict::Join { instance: 9 });
}

#[test]
fn a_process_that_said_goodbye_comes_back_within_limits() {
    let mut senders = senders(false);
    let mut limits = limits();
    senders.note_goodbye(PID, 0);
    let attached = || FoundProcess::Attached(Some(INSTANCE));
    let mut back = || senders.judge_unknown(&beat(1), ROOM, 0, &mut limits, 5, attached);
    for _ in 0..100 {
        assert_eq!(back(), Verdict::Join { instance: INSTANCE });
    }
    let refused = Refusal::RateLimited(Limit::Comebacks);
    assert_eq!(back(), Verdict::Refuse(refused));
}

fn reply(proved: bool, info: ProcessInfo) -> SenderReply {
    SenderReply {
        instance: INSTANCE,
        proved,
        info,
    }
}

#[test]
fn a_waiting_beat_joins_if_the_process_is_the_sender_and_its_claim_is_valid() {
    let foreign = ProcessInfo {
        is_foreign: true,
        ..info(&[PID, 7])
    };
    let unknown = ProcessInfo::default();
    let join = Verdict::Join { instance: INSTANCE };
    let refuse = Verdict::Refuse;
    let unverified = |claimed| refuse(Refusal::UnverifiedClaim { claimed });
    for (refuse_foreign, claimed, proved, info, has_ended, expected) in [
        (false, 7, true, info(&[PID, 7]), false, join),
        (false, PID, true, unknown, false, join),
        (
            false,
            7,
            false,
            info(&[PID, 7]),
            false,
            refuse(Refusal::UnprovedSender),
        ),
        (
            false,
            8,
            true,
            info(&[PID, 7]),
            false,
            refuse(Refusal::PidMismatch { claimed: 8 }),
        ),
        (false, 7, true, unknown, false, unverified(7)),
        (false, 7, true, foreign, false, join),
        (
            true,
            7,
            true,
            foreign,
            false,
            refuse(Refusal::ForeignNamespace),
        ),
        (true, PID, true, info(&[PID]), false, join),
        (true, PID, true, unknown, false, unverified(PID)),
        (true, PID, true, unknown, true, join),
    ] {
        let verdict = senders(refuse_foreign).judge_reply(
            &claiming(claimed, 1),
            &reply(proved, info),
            None,
            &mut limits(),
            0,
            || has_ended,
        );
        assert_eq!(
            verdict, expected,
            "{refuse_foreign} {claimed} {proved} {info:?}"
        );
    }
}

#[test]
fn a_beat_that_waited_for_a_known_agent_is_credited_unless_a_later_one_was() {
    let claims = Some(Claims::from_pids(&[PID, 7]));
    let unproved = Verdict::Refuse(Refusal::UnprovedSender);
    for (nonce, proved, claims, expected) in [
        (11, true, claims, Verdict::Credit),
        (11, false, claims, unproved),
        (10, true, claims, Verdict::Refuse(Refusal::OutOfOrder)),
        (
            11,
            true,
            None,
            Verdict::Refuse(Refusal::UnverifiedClaim { claimed: 7 }),
        ),
    ] {
        let known = KnownSender { claims, ..known() };
        let verdict = senders(false).judge_reply(
            &claiming(7, nonce),
            &reply(proved, ProcessInfo::default()),
            Some(&known),
            &mut limits(),
            0,
            never,
        );
        assert_eq!(verdict, expected, "{nonce} {proved} {claims:?}");
    }
}

#[test]
fn a_process_that_was_refused_after_a_look_is_not_examined_again_until_it_may_be_right() {
    let refused_with = |refuse_foreign, info: ProcessInfo| {
        let mut senders = senders(refuse_foreign);
        let lie = claiming(8, 1);
        let reply = reply(true, info);
        senders.judge_reply(&lie, &reply, None, &mut limits(), 0, || false);
        senders
    };
    let attached = FoundProcess::Attached(Some(INSTANCE));
    let mut liar = refused_with(false, info(&[PID, 7]));
    let again = liar.judge_unknown(&claiming(9, 1), ROOM, 0, &mut limits(), 5, never);
    assert_eq!(again, Verdict::Refuse(Refusal::PidMismatch { claimed: 9 }));
    let verdict = judge_unknown(&mut liar, &claiming(7, 1), attached, 5);
    assert_eq!(verdict, query(Some(INSTANCE), None));
    let verdict = judge_unknown(&mut liar, &beat(1), attached, 5);
    assert_eq!(verdict, Verdict::Join { instance: INSTANCE });
    let verdict = judge_unknown(&mut liar, &claiming(9, 1), attached, SECOND);
    assert_eq!(
        verdict,
        Verdict::Wait,
        "forgotten; one of its beats waits already"
    );

    let foreign = ProcessInfo {
        is_foreign: true,
        ..info(&[PID, 8])
    };
    let mut foreigner = refused_with(true, foreign);
    let again = foreigner.judge_unknown(&beat(1), ROOM, 0, &mut limits(), 5, never);
    assert_eq!(again, Verdict::Refuse(Refusal::ForeignNamespace));
}

#[test]
fn only_an_unknown_sender_that_may_join_and_is_not_noisy_needs_its_process_attached() {
    let mut senders = senders(false);
    let sender = beat(1).sender;
    assert!(senders.wants_process(sender, ROOM, 0));
    let full = Room {
        in_table: false,
        ..ROOM
    };
    assert!(!senders.wants_process(sender, full, 0));
    let foreign_user = Credentials { uid: 1, ..sender };
    assert!(!senders.wants_process(foreign_user, ROOM, 0));

    let no_frame = Datagram {
        bytes: &[0; FRAME_BYTES],
        truncated: false,
        control_truncated: false,
        credentials: Some(sender),
    };
    for _ in 0..NOISY_DATAGRAMS {
        assert!(senders.wants_process(sender, ROOM, 0));
        assert!(
            senders.admit(&no_frame, false, 0).is_err(),
            "no noise: it cost nothing"
        );
        assert!(senders.admit(&no_frame, true, 0).is_err());
    }
    assert!(!senders.wants_process(sender, ROOM, 0));
    assert!(senders.wants_process(sender, ROOM, SECOND));
}

#[test]
fn a_refused_unknown_sender_leaves_no_beat_behind() {
    let mut senders = senders(false);
    senders.note_end(PID, INSTANCE, 0);
    judge_unknown(
        &mut senders,
        &beat(1),
        FoundProcess::Attached(Some(INSTANCE)),
        0,
    );
    judge_unknown(&mut senders, &claiming(7, 1), FoundProcess::Gone, SECOND);
    let verdict = judge_unknown(&mut senders, &beat(2), FoundProcess::Opened(Some(9)), 0);
    let Verdict::Ask(query) = verdict else {
        panic!("{verdict:?}");
    };
    let waiting = senders
        .next_pending(query.ticket)
        .map(|beat| beat.frame.nonce);
    assert_eq!(waiting, Some(2));
    assert!(senders.next_pending(query.ticket).is_none());
}
