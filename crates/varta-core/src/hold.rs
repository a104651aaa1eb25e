//! Which agents fire is held for: all local agents, all remote agents, or the local agents of one user.
//!
//! When the agents of one user fall silent together and the agents of other users are well, that user is the
//! suspect and not the host; otherwise any user could stop recovery for all. The host is the suspect when too
//! many of all agents are silent, and agents of users without a mass stall of their own are silent, too. Where
//! all agents are of one user, the host is the suspect as well.
//!
//! Bounds: one entry per user for which fire is held.

mod fire;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::agent::{Locality, PerLocality};
use crate::silence_counts::{SilenceByGroup, SilenceCounts};

pub use fire::{HoldChange, HoldFire, HoldOptions, HoldReason, Pressure};

/// Silent agents of other users that make the host the suspect beside one user with a mass stall of its own:
/// two, because a single one may hang by coincidence.
const OTHERS_MIN: u32 = 2;

/// Which agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All agents of a locality.
    All(Locality),
    /// Local agents of one user.
    User(u32),
}

/// Which agents fire is held for.
#[derive(Debug)]
pub struct Holds {
    options: HoldOptions,
    /// By locality: the silence of one is no evidence about the other.
    all: PerLocality<HoldFire>,
    /// Users for which fire is held.
    users: BTreeMap<u32, HoldFire>,
}

impl Holds {
    /// Fire is free for all.
    pub fn new(options: HoldOptions) -> Self {
        Self {
            options,
            all: PerLocality {
                local: HoldFire::new(options),
                remote: HoldFire::new(options),
            },
            users: BTreeMap::new(),
        }
    }

    /// Replaces the options; held fire stays held until it is judged by the new ones.
    pub fn set_options(&mut self, options: HoldOptions) {
        self.options = options;
        for hold in [&mut self.all.local, &mut self.all.remote]
            .into_iter()
            .chain(self.users.values_mut())
        {
            hold.set_options(options);
        }
    }

    /// Whether fire is held for all agents of a locality.
    pub fn is_held(&self, locality: Locality) -> bool {
        self.all[locality].reason().is_some()
    }

    /// Whether fire is held for the agents of a user.
    pub fn is_held_for(&self, user: u32) -> bool {
        self.users.contains_key(&user)
    }

    /// Users for which fire is held.
    pub fn users(&self) -> impl Iterator<Item = u32> {
        self.users.keys().copied()
    }

    /// Whether fire is held for any agent.
    pub fn is_any_held(&self) -> bool {
        Locality::ALL
            .into_iter()
            .any(|locality| self.is_held(locality))
            || !self.users.is_empty()
    }

    /// Judges by the counts of silent agents and the host's pressure, `now_ns` in attention time.
    pub fn judge(
        &mut self,
        groups: &SilenceByGroup,
        pressure: Pressure,
        now_ns: u64,
    ) -> Vec<(Scope, HoldChange)> {
        let mut changes = Vec::new();
        let is_host = self.is_host_silent(groups);
        for (locality, counts) in [
            (Locality::Local, &groups.local),
            (Locality::Remote, &groups.remote),
        ] {
            let mass_counts = locality == Locality::Remote || is_host;
            let change = self.all[locality].judge(counts, mass_counts, pressure, now_ns);
            changes.extend(change.map(|change| (Scope::All(locality), change)));
        }
        if groups.users.len() > 1 {
            for (user, counts) in &groups.users {
                let is_mass = HoldFire::new(self.options).mass_stall(counts).is_some();
                if is_mass && !self.users.contains_key(user) {
                    self.users.insert(*user, HoldFire::new(self.options));
                }
            }
        }
        let nobody = SilenceCounts::default();
        self.users.retain(|user, hold| {
            let counts = groups.users.get(user).unwrap_or(&nobody);
            let change = hold.judge(counts, true, Pressure::default(), now_ns);
            changes.extend(change.map(|change| (Scope::User(*user), change)));
            hold.reason().is_some()
        });
        changes
    }

    /// Whether a mass stall of all local agents would not be one user's alone.
    fn is_host_silent(&self, groups: &SilenceByGroup) -> bool {
        let is_mass = |user: &u32, counts: &SilenceCounts| match self.users.get(user) {
            Some(hold) => hold.mass_stall(counts).is_some(),
            None => HoldFire::new(self.options).mass_stall(counts).is_some(),
        };
        let others = groups.users.iter();
        let others = others.filter(|(user, counts)| !is_mass(user, counts));
        let mut rest = SilenceCounts::default();
        for (_, counts) in others {
            rest.watched += counts.watched;
            rest.silent += counts.silent;
            rest.fresh += counts.fresh;
        }
        if rest.watched == 0 || rest.watched == groups.local.watched {
            return true;
        }
        let is_held = matches!(self.all.local.reason(), Some(HoldReason::MassStall { .. }));
        // While fire is held every silent agent counts, for however long it has been silent.
        let silent = if is_held { rest.silent } else { rest.fresh };
        let of = rest.watched - (rest.silent - silent);
        let share = self.options.share.unwrap_or(1.0);
        silent >= OTHERS_MIN && f64::from(silent) > share * f64::from(of)
    }
}
