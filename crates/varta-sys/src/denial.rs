//! Starts a program for which some system calls fail, for tests of its behaviour on an older kernel or in a
//! sandbox.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A system call, optionally only with one value of an argument.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    number: libc::c_long,
    /// Which argument, and its lower 32 bits.
    argument: Option<(u32, u32)>,
}

impl Call {
    /// `recvmsg`.
    pub const RECVMSG: Self = Self::any(libc::SYS_recvmsg);
    /// `recvmmsg`.
    pub const RECVMMSG: Self = Self::any(libc::SYS_recvmmsg);
    /// `epoll_pwait`.
    pub const EPOLL_PWAIT: Self = Self::any(libc::SYS_epoll_pwait);
    /// `epoll_wait`; where there is none, `epoll_pwait`.
    #[cfg(target_arch = "x86_64")]
    pub const EPOLL_WAIT: Self = Self::any(libc::SYS_epoll_wait);
    /// `epoll_wait`; where there is none, `epoll_pwait`.
    #[cfg(not(target_arch = "x86_64"))]
    pub const EPOLL_WAIT: Self = Self::EPOLL_PWAIT;
    /// `socketpair`.
    pub const SOCKETPAIR: Self = Self::any(libc::SYS_socketpair);
    /// `setsockopt` with `SO_PASSRIGHTS`, which kernels before 6.16 do not know.
    pub const REFUSE_DESCRIPTORS: Self = Self {
        number: libc::SYS_setsockopt,
        argument: Some((2, 83)),
    };

    const fn any(number: libc::c_long) -> Self {
        Self {
            number,
            argument: None,
        }
    }

    /// Instructions that answer this call with `errno` and allow every other one.
    fn instructions(self, errno: i32) -> Vec<libc::sock_filter> {
        // `struct seccomp_data`: the number, the architecture, where the call was made, the arguments.
        const NUMBER: u32 = 0;
        const ARGUMENTS: u32 = 16;
        const ARGUMENT_BYTES: u32 = 8;
        let low = u32::from(cfg!(target_endian = "big")) * 4;
        let argument = self.argument.map(|(which, value)| {
            let at = ARGUMENTS + which * ARGUMENT_BYTES + low;
            (at, value)
        });
        let number = (NUMBER, self.number as u32);
        let conditions: Vec<(u32, u32)> = [Some(number), argument].into_iter().flatten().collect();
        let mut instructions = Vec::new();
        for (i, (at, value)) in conditions.iter().enumerate() {
            // Skips the remaining conditions and the refusal.
            let past = 2 * (conditions.len() - i - 1) + 1;
            instructions.push(instruction(
                libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                *at,
                0,
            ));
            let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
            instructions.push(instruction(equal, *value, past as u8));
        }
        let refuse = libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
        instructions.push(instruction(libc::BPF_RET | libc::BPF_K, refuse, 0));
        let allow = libc::SECCOMP_RET_ALLOW;
        instructions.push(instruction(libc::BPF_RET | libc::BPF_K, allow, 0));
        instructions
    }
}

fn instruction(code: u32, k: u32, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    }
}

/// Makes `call` fail with `errno` in the program that `command` starts, and in its descendants. They can gain no rights
/// by `execve`.
///
/// The command fails to start where such filters cannot be set.
pub fn deny(command: &mut Command, call: Call, errno: i32) -> &mut Command {
    let instructions = call.instructions(errno);
    // SAFETY: the closure runs in the child before `execve`. It makes two system calls and allocates nothing.
    unsafe { command.pre_exec(move || filter(&instructions)) }
}

fn filter(instructions: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: instructions.len() as u16,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: five numbers.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the program is read, with as many instructions as it says.
    checked(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a shell can still do this.
    fn works(call: Call) -> bool {
        let mut command = Command::new("sh");
        let status = deny(command.args(["-c", "cd /"]), call, libc::EPERM).status();
        status.unwrap().success()
    }

    #[test]
    fn a_call_that_is_denied_fails_and_others_go_on() {
        assert!(works(Call::RECVMMSG));
        assert!(!works(Call::any(libc::SYS_chdir)));
    }

    #[test]
    fn a_call_may_be_denied_for_one_value_of_an_argument() {
        let kill = |signal| Call {
            number: libc::SYS_kill,
            argument: Some((1, signal)),
        };
        let succeeds = |call| {
            let mut command = Command::new("sh");
            let script = "kill -CONT $$";
            let status = deny(command.args(["-c", script]), call, libc::EPERM).status();
            status.unwrap().success()
        };
        assert!(!succeeds(kill(libc::SIGCONT as u32)));
        assert!(succeeds(kill(libc::SIGWINCH as u32)));
    }
}
