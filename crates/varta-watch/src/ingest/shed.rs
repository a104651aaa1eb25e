//! Drops a flood at its sender.
//!
//! The kernel queues a handful of datagrams for all agents together. A sender that sends without pause keeps that
//! queue full, and other senders are refused, however fast the observer reads and whatever it refuses afterwards. So
//! datagrams that are refused at the rate of a flood are not queued at all: a filter on the socket, which the kernel
//! runs in the sender's own context, passes only a sample of them. The sender does not notice, no other sender is
//! affected, and the flood costs only its sender.
//!
//! Only datagrams that cannot be another agent's are dropped: frames whose claim is their sender's own pid or that of
//! no process, and no known agent's pid inside a container, and datagrams that are no frames at all. Terminal frames
//! are a separate kind, so that a crash is received during a flood of beats. The sample keeps an honest agent alive
//! at its allowed rate, shows how much was dropped, and shows when the flood is over.

use varta_sys::filter::Instruction;

/// Interval between two reviews of the floods.
const WINDOW_NS: u64 = 100_000_000;

/// Refusals of one kind per window, in this many windows in a row, that make a flood: 3000 per second, at which a
/// sender in bursts can keep the queue full. A single burst ends before it counts as a flood.
const FLOOD_REFUSALS: u64 = 300;
const FLOOD_WINDOWS: u32 = 3;

/// With fewer refusals than this in each of this many windows a flood is over: far fewer than its start takes, and
/// for a second, so that it does not start and end repeatedly.
const OVER_REFUSALS: u64 = 75;
const OVER_WINDOWS: u32 = 10;

/// Datagrams per window that a sample aims at: enough to keep its sender's bucket full.
const SAMPLE_MIN: u64 = 40;

/// Most kinds of floods at the same time; a further one must wait until one is over.
const KINDS_MAX: usize = 8;

/// The finest sample is one in this power of two.
const SAMPLE_POWER_MAX: u32 = 16;

/// The property that the datagrams of a flood share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FloodKind {
    /// Frames with this claim.
    Of(u32),
    /// The same with the terminal nonce.
    LastOf(u32),
    /// Datagrams that are no frames by their length or their first bytes.
    Shapeless,
}

#[derive(Clone, Copy, Debug)]
struct Flood {
    kind: FloodKind,
    /// Refused in this window, including the dropped ones.
    refused: u64,
    /// One in `2^power` passes; 0 while nothing is dropped.
    power: u32,
    /// Windows in a row that were busy.
    busy: u32,
    /// Windows in a row that were quiet.
    quiet: u32,
}

/// A flood started or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) kind: FloodKind,
    /// One in this many passes from now on; 1 when it is over.
    pub(super) one_in: u32,
}

/// The current floods.
#[derive(Debug)]
pub(super) struct Shed {
    floods: Vec<Flood>,
    news: Vec<News>,
    window_from_ns: u64,
    /// A flood was removed, so the program must change.
    was_spared: bool,
    /// Beats per window that any agent may send.
    allowed: u64,
    program: Vec<Instruction>,
}

impl Shed {
    /// `rate` is the beats per second that an agent may send.
    pub(super) fn new(rate: u32) -> Self {
        let mut shed = Self {
            floods: Vec::with_capacity(KINDS_MAX),
            news: Vec::with_capacity(KINDS_MAX),
            window_from_ns: 0,
            was_spared: false,
            allowed: 0,
            program: Vec::with_capacity(PROGRAM_MAX),
        };
        shed.allow(rate);
        shed
    }

    /// Some agent may send this many beats per second from now on. Samples are as large as the largest rate that was
    /// ever allowed requires: a sample that is too large costs a little, one that is too small costs an agent.
    pub(super) fn allow(&mut self, rate: u32) {
        let allowed = u64::from(rate).saturating_mul(WINDOW_NS) / 1_000_000_000;
        self.allowed = self.allowed.max(allowed);
    }

    /// A datagram has passed and was refused or credited. Returns how many like it were dropped for it, by the law of
    /// large numbers.
    pub(super) fn note(&mut self, kind: FloodKind, was_refused: bool) -> u64 {
        if let Some(flood) = self.floods.iter_mut().find(|flood| flood.kind == kind) {
            let stands_for = 1 << flood.power;
            let refused = if was_refused {
                stands_for
            } else {
                stands_for - 1
            };
            flood.refused += refused;
            return stands_for - 1;
        }
        if !was_refused {
            return 0;
        }
        let new = Flood {
            kind,
            refused: 1,
            power: 0,
            busy: 0,
            quiet: 0,
        };
        if self.floods.len() < KINDS_MAX {
            self.floods.push(new);
        } else if let Some(flood) = self.floods.iter_mut().find(|flood| flood.power == 0) {
            // The kind that is refused most often is in the list most of the time.
            flood.refused = flood.refused.saturating_sub(1);
            if flood.refused == 0 {
                *flood = new;
            }
        }
        0
    }

    /// An agent has joined that may use this claim: it is not dropped any more.
    pub(super) fn spare(&mut self, pid: u32) {
        let before = self.floods.len();
        let is_claim = |kind| kind == FloodKind::Of(pid) || kind == FloodKind::LastOf(pid);
        self.floods.retain(|flood| !is_claim(flood.kind));
        self.was_spared |= self.floods.len() != before;
    }

    /// Ends a window if it is time. Returns the filter program for the socket (empty for none) if it must change.
    pub(super) fn review(&mut self, now_ns: u64) -> Option<&[Instruction]> {
        let elapsed_ns = now_ns.saturating_sub(self.window_from_ns);
        if elapsed_ns < WINDOW_NS {
            let must_change = std::mem::take(&mut self.was_spared);
            return must_change.then(|| self.programmed());
        }
        self.window_from_ns = now_ns;
        let windows = elapsed_ns / WINDOW_NS;
        let sample = self.allowed.saturating_mul(4).max(SAMPLE_MIN);
        let mut changed = std::mem::take(&mut self.was_spared);
        let news = &mut self.news;
        news.clear();
        self.floods.retain_mut(|flood| {
            let refused = std::mem::take(&mut flood.refused) / windows;
            let was = flood.power;
            flood.busy = match refused >= FLOOD_REFUSALS {
                true => flood.busy.saturating_add(1),
                false => 0,
            };
            if flood.busy >= FLOOD_WINDOWS {
                let power = (refused / sample).max(2).ilog2().min(SAMPLE_POWER_MAX);
                // A sample shows small changes badly, and each update costs system calls.
                if was == 0 || power.abs_diff(was) > 1 {
                    flood.power = power;
                }
            }
            flood.quiet = match refused < OVER_REFUSALS {
                true => flood.quiet + 1,
                false => 0,
            };
            if flood.quiet >= OVER_WINDOWS {
                flood.power = 0;
            }
            changed |= flood.power != was;
            if (flood.power == 0) != (was == 0) {
                news.push(News {
                    kind: flood.kind,
                    one_in: 1 << flood.power,
                });
            }
            flood.power != 0 || flood.busy != 0
        });
        changed.then(|| self.programmed())
    }

    fn programmed(&mut self) -> &[Instruction] {
        write_program(&mut self.program, &self.floods);
        &self.program
    }

    /// The changes that the last [`Self::review`] found.
    pub(super) fn take_news(&mut self) -> Option<News> {
        self.news.pop()
    }

    /// When [`Self::review`] is due even without input; `None` while nothing is dropped.
    pub(super) fn next_review_ns(&self) -> Option<u64> {
        let is_shedding = self.floods.iter().any(|flood| flood.power != 0);
        is_shedding.then_some(self.window_from_ns + WINDOW_NS)
    }
}

/// Instructions per claim.
const CLAIM_LENGTH: usize = 6;

/// Instructions of the longest program; jumps reach 255 instructions.
const PROGRAM_MAX: usize = 16 + CLAIM_LENGTH * KINDS_MAX;
const _: () = assert!(PROGRAM_MAX <= u8::MAX as usize);

// The instructions of the classic filter, from `linux/bpf_common.h`.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_LENGTH: u16 = 0x80;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// `SKF_AD_OFF + SKF_AD_RANDOM`: a load from there is a random number.
const RANDOM: u32 = 0xffff_f000 + 56;

/// Keeps all of a datagram.
const PASS: u32 = u32::MAX;

/// Keeps nothing of it: to the sender it looks sent.
const DROP: u32 = 0;

fn statement(code: u16, operand: u32) -> Instruction {
    jump(code, operand, 0, 0)
}

fn jump(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        operand,
    }
}

/// Passes a random one in `2^power`.
fn sample(power: u32) -> [Instruction; 4] {
    [
        statement(LOAD_WORD, RANDOM),
        jump(JUMP_SET, (1 << power) - 1, 0, 1),
        statement(RETURN, DROP),
        statement(RETURN, PASS),
    ]
}

/// Writes the filter for these floods; nothing if none must be dropped. The filter reads big-endian numbers.
fn write_program(program: &mut Vec<Instruction>, floods: &[Flood]) {
    program.clear();
    let shed = || floods.iter().filter(|flood| flood.power != 0);
    if shed().next().is_none() {
        return;
    }
    let shapeless = shed().find(|flood| flood.kind == FloodKind::Shapeless);
    let claims = |is_last: bool| {
        shed().filter_map(move |flood| match flood.kind {
            FloodKind::Of(pid) if !is_last => Some((pid, flood.power)),
            FloodKind::LastOf(pid) if is_last => Some((pid, flood.power)),
            FloodKind::Of(_) | FloodKind::LastOf(_) | FloodKind::Shapeless => None,
        })
    };
    let regular_length = claims(false).count() * CLAIM_LENGTH + 1;
    program.extend([
        statement(LOAD_LENGTH, 0),
        jump(JUMP_EQUAL, 32, 0, 4),
        statement(LOAD_HALF, 0),
        jump(JUMP_EQUAL, 0x5641, 0, 2),
        statement(LOAD_BYTE, 2),
        jump(JUMP_EQUAL, 2, 4, 0),
    ]);
    // Four instructions for datagrams that are no frames.
    program.extend(shapeless.map_or([statement(RETURN, PASS); 4], |flood| sample(flood.power)));
    // The nonce of all ones has a list of its own, behind that of the regular ones.
    program.extend([
        statement(LOAD_WORD, 16),
        jump(JUMP_EQUAL, u32::MAX, 0, 2),
        statement(LOAD_WORD, 20),
        jump(JUMP_EQUAL, u32::MAX, regular_length as u8, 0),
    ]);
    for is_last in [false, true] {
        for (pid, power) in claims(is_last) {
            // The claim is loaded again each time, since sampling uses the one register there is.
            program.push(statement(LOAD_WORD, 4));
            program.push(jump(JUMP_EQUAL, pid.swap_bytes(), 0, 4));
            program.extend(sample(power));
        }
        program.push(statement(RETURN, PASS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use varta_sys::filter::{attach, detach};
    use varta_vlp::{Frame, NONCE_TERMINAL, Status};

    const PID: FloodKind = FloodKind::Of(4242);

    fn frame(pid: u32, status: Status, nonce: u64) -> [u8; 32] {
        let mut bytes = [0; 32];
        Frame::new(status, pid, 5, nonce, 0).encode(&mut bytes);
        bytes
    }

    fn flood(kind: FloodKind, power: u32) -> Flood {
        Flood {
            kind,
            refused: 0,
            power,
            busy: 0,
            quiet: 0,
        }
    }

    /// How many of `count` datagrams pass the filter for these floods.
    fn passed(floods: &[Flood], bytes: &[u8], count: usize) -> usize {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        let mut program = Vec::new();
        write_program(&mut program, floods);
        assert!(program.len() <= PROGRAM_MAX);
        attach(receiver.as_fd(), &program).unwrap();
        let mut passed = 0;
        let mut room = [0; 8192];
        for _ in 0..count {
            sender.send(bytes).unwrap();
            if let Ok(len) = receiver.recv(&mut room) {
                assert_eq!(&room[..len], bytes, "whole or not at all");
                passed += 1;
            }
        }
        detach(receiver.as_fd()).unwrap();
        passed
    }

    #[test]
    fn of_a_flood_a_sample_passes_and_of_everybody_else_everything() {
        let floods = [flood(PID, 4), flood(FloodKind::Of(7), 16)];
        let sample = passed(&floods, &frame(4242, Status::Ok, 9), 16_000);
        assert!((700..1300).contains(&sample), "{sample} of 16000");
        assert!(passed(&floods, &frame(7, Status::Ok, 9), 1_000) < 10);
        let others = [
            frame(4243, Status::Ok, 9).to_vec(),
            frame(4242_u32.swap_bytes(), Status::Ok, 9).to_vec(),
            frame(4242, Status::Critical, NONCE_TERMINAL).to_vec(),
            vec![],
            vec![7; 31],
            vec![7; 32],
            vec![7; 4096],
        ];
        for bytes in others {
            assert_eq!(passed(&floods, &bytes, 50), 50, "{bytes:?}");
        }
    }

    #[test]
    fn a_flood_of_terminal_frames_is_shed_and_leaves_the_beats_alone() {
        let floods = [
            flood(FloodKind::LastOf(4242), 16),
            flood(FloodKind::Of(7), 16),
        ];
        let last = |pid| frame(pid, Status::Critical, NONCE_TERMINAL);
        assert!(passed(&floods, &last(4242), 1_000) < 10);
        assert_eq!(passed(&floods, &frame(4242, Status::Ok, 9), 50), 50);
        assert_eq!(passed(&floods, &last(7), 50), 50);
        assert!(passed(&floods, &frame(7, Status::Ok, 9), 1_000) < 10);
    }

    #[test]
    fn what_is_no_frame_can_be_shed_without_touching_frames() {
        let floods = [flood(FloodKind::Shapeless, 16)];
        let mut wrong_version = frame(7, Status::Ok, 1);
        wrong_version[2] = 1;
        for bytes in [&[][..], &[1], &[7; 31], &[7; 32], &[7; 60], &wrong_version] {
            assert!(passed(&floods, bytes, 1_000) < 10, "{bytes:?}");
        }
        assert_eq!(passed(&floods, &frame(7, Status::Ok, 1), 50), 50);
    }

    #[test]
    fn as_many_floods_as_are_told_apart_fit_into_the_program() {
        let mut floods: Vec<_> = (1..KINDS_MAX as u32)
            .map(|pid| flood(FloodKind::Of(pid), 16))
            .collect();
        floods.push(flood(FloodKind::Shapeless, 16));
        assert!(passed(&floods, &frame(7, Status::Ok, 1), 1_000) < 10);
        assert_eq!(passed(&floods, &frame(4242, Status::Ok, 1), 50), 50);
    }

    #[test]
    fn only_a_flood_is_shed_and_only_while_it_lasts() {
        let mut shed = Shed::new(100);
        let mut now_ns = 0;
        let mut window = |shed: &mut Shed, refusals: u64| {
            let stood_for: u64 = (0..refusals).map(|_| shed.note(PID, true)).sum();
            now_ns += WINDOW_NS;
            let program = shed.review(now_ns).map(<[_]>::len);
            (stood_for, program)
        };
        for _ in 0..10 {
            assert_eq!(window(&mut shed, FLOOD_REFUSALS - 1), (0, None));
        }
        for _ in 1..FLOOD_WINDOWS {
            assert_eq!(window(&mut shed, 64_000), (0, None), "a burst");
        }
        let (_, program) = window(&mut shed, 64_000);
        assert!(program.is_some_and(|length| length > 0));
        let one_in = 1024;
        assert_eq!(shed.take_news(), Some(News { kind: PID, one_in }));
        assert!(shed.next_review_ns().is_some());
        // 64000 per window against a sample of 40: one in 1024.
        assert_eq!(window(&mut shed, 60), (60 * 1023, None), "it goes on");
        for _ in 1..OVER_WINDOWS {
            assert_eq!(window(&mut shed, 0), (0, None), "it may go on");
        }
        assert_eq!(window(&mut shed, 0), (0, Some(0)), "it is over");
        assert_eq!(shed.next_review_ns(), None);
        let one_in = 1;
        assert_eq!(shed.take_news(), Some(News { kind: PID, one_in }));
        assert_eq!(window(&mut shed, 10), (0, None));
    }

    #[test]
    fn who_joins_under_a_claim_that_is_shed_is_heard_from_then_on() {
        let mut shed = Shed::new(100);
        for window in 1..=u64::from(FLOOD_WINDOWS) {
            for _ in 0..64_000 {
                shed.note(PID, true);
            }
            shed.review(window * WINDOW_NS);
        }
        let now_ns = u64::from(FLOOD_WINDOWS) * WINDOW_NS;
        shed.spare(7);
        assert_eq!(shed.review(now_ns), None, "somebody else");
        shed.spare(4242);
        assert_eq!(shed.review(now_ns).map(<[_]>::len), Some(0));
        assert_eq!(shed.review(now_ns), None);
    }

    #[test]
    fn one_flood_among_many_small_offenders_is_found() {
        let mut shed = Shed::new(100);
        let mut changes = 0;
        for window in 1..=u64::from(FLOOD_WINDOWS) {
            for i in 0..20_000 {
                shed.note(PID, true);
                if i % 4 == 0 {
                    shed.note(FloodKind::Of(i), true);
                }
            }
            changes += usize::from(shed.review(window * WINDOW_NS).is_some());
        }
        assert_eq!(changes, 1);
        let shedding: Vec<_> = shed.floods.iter().map(|flood| flood.kind).collect();
        assert_eq!(shedding, [PID]);
    }

    #[test]
    fn a_sample_lets_through_what_the_agent_may_send() {
        let mut shed = Shed::new(10_000);
        for window in 1..=u64::from(FLOOD_WINDOWS) {
            for _ in 0..64_000 {
                shed.note(PID, true);
            }
            shed.review(window * WINDOW_NS);
        }
        // 1000 beats per window are allowed, so one in 16 passes, and each represents 16.
        assert_eq!(shed.note(PID, true), 15);
        assert_eq!(shed.note(PID, false), 15);
        assert_eq!(shed.note(FloodKind::Of(1), false), 0);
    }
}
