//! Faults of the daemon and its environment. One thread per kind of fault, until the end of the
//! test.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use soci_tests::unit::{End, Keeping};

use crate::Plan;
use crate::truth::Dice;
use crate::world::{RATE, TOKEN_LIFE, World, lock};

/// Causes one fault, after a pause.
type Fault = fn(&World, &Plan, &mut Dice) -> Result<()>;

/// All kinds of faults that this setup can tolerate.
pub(crate) fn faults(plan: &Plan) -> Vec<(&'static str, Fault)> {
    let all: [(&'static str, Fault); 6] = [
        ("kill", kill),
        ("registry", registry),
        ("tokens", tokens),
        ("disk", disk),
        ("replace", replace),
        ("memory", memory),
    ];
    all.into_iter()
        .filter(|(name, _)| match *name {
            "replace" => plan.keeping == Keeping::Unit,
            // Without a keeper, no process restarts the daemon after an OOM kill.
            "memory" => plan.keeping != Keeping::Alone,
            _ => true,
        })
        .filter(|(name, _)| !plan.leaves_out(name))
        .collect()
}

/// Causes one kind of fault again and again.
pub(crate) fn go_on(world: &World, plan: &Plan, name: &str, fault: Fault) {
    let salt = name.bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte));
    let mut dice = Dice::new(plan.seed ^ salt);
    while !world.is_over() {
        if let Err(error) = fault(world, plan, &mut dice) {
            world.trouble(format!("{name}: {error:#}"));
        }
    }
}

fn pause(world: &World, dice: &mut Dice, from_ms: u64, to_ms: u64) -> bool {
    world.sleep(Duration::from_millis(dice.throw(from_ms, to_ms)));
    !world.is_over()
}

/// Sleeps before a kill, longer while calls are spared.
fn pause_to_kill(world: &World, dice: &mut Dice, from_ms: u64, to_ms: u64) -> bool {
    let goes_on = pause(world, dice, from_ms, to_ms);
    while world.is_spared() && !world.is_over() {
        world.sleep(Duration::from_millis(50));
    }
    goes_on && !world.is_over()
}

/// A series of kills, then a pause in which pulls finish and layers become complete.
fn kill(world: &World, _: &Plan, dice: &mut Dice) -> Result<()> {
    for _ in 0..dice.throw(3, 12) {
        if pause_to_kill(world, dice, 100, 2000) && lock(&world.service).kill_worker()? {
            world.events.count(&world.events.kills, "worker killed");
        }
    }
    pause(world, dice, 1500, 5000);
    Ok(())
}

fn replace(world: &World, plan: &Plan, dice: &mut Dice) -> Result<()> {
    if !pause_to_kill(world, dice, 5000, 15_000) {
        return Ok(());
    }
    let end = if dice.throw(0, 2) == 0 {
        End::Killed
    } else {
        End::Terminated
    };
    let which = usize::try_from(dice.throw(0, plan.builds.len() as u64))?;
    let build = &plan.builds[which];
    world.events.say(&format!("keeper {end:?}"));
    let took = lock(&world.service).replace(end, Some(&build.binary))?;
    build.started.fetch_add(1, Ordering::SeqCst);
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let longest = &world.events.longest_replacement;
    longest.fetch_max(millis, Ordering::SeqCst);
    let what = format!("keeper replaced in {millis} ms by {}", build.version);
    world.events.count(&world.events.replaced, &what);
    Ok(())
}

fn registry(world: &World, _: &Plan, dice: &mut Dice) -> Result<()> {
    if !pause(world, dice, 2000, 8000) {
        return Ok(());
    }
    let (events, relay) = (&world.events, &world.registry.relay);
    match dice.throw(0, 5) {
        0 | 1 => {
            events.count(&events.cuts, "registry cut");
            relay.cut();
            pause(world, dice, 200, 3000);
            relay.restore();
        }
        2 | 3 => {
            events.count(&events.slowed, "registry slow");
            relay.limit(RATE / 20);
            pause(world, dice, 500, 4000);
            relay.limit(RATE);
        }
        _ => {
            events.count(&events.restarts, "registry restarted");
            lock(&world.registry.server).restart()?;
        }
    }
    events.say("registry as usual");
    Ok(())
}

/// Refuses all tokens, at times for longer than issued tokens are valid.
fn tokens(world: &World, _: &Plan, dice: &mut Dice) -> Result<()> {
    if !pause(world, dice, 8000, 20_000) {
        return Ok(());
    }
    let status = if dice.throw(0, 2) == 0 { 401 } else { 503 };
    let longest = TOKEN_LIFE.as_secs() * 1000 + 3000;
    world.registry.refuse_tokens(Some(status));
    world.events.set_tokenless(true);
    let what = format!("token service answers {status}");
    world.events.count(&world.events.tokenless_times, &what);
    pause(world, dice, 1000, longest);
    world.registry.refuse_tokens(None);
    world.events.set_tokenless(false);
    Ok(())
}

fn disk(world: &World, _: &Plan, dice: &mut Dice) -> Result<()> {
    if !pause(world, dice, 10_000, 25_000) {
        return Ok(());
    }
    // Tells the readers that data read now may not be stored.
    let told = world.memory().join("lib/full");
    fs::write(&told, "")?;
    world.events.set_full(true);
    let ballast = world.disk.fill(dice.throw(0, 4))?;
    world.events.count(&world.events.filled, "disk filled");
    pause(world, dice, 1000, 4000);
    fs::remove_file(ballast)?;
    world.events.set_full(false);
    pause(world, dice, 1000, 1001);
    Ok(fs::remove_file(told)?)
}

fn memory(world: &World, _: &Plan, dice: &mut Dice) -> Result<()> {
    const TIGHT: u64 = 64 << 20;
    if !pause(world, dice, 8000, 20_000) {
        return Ok(());
    }
    let Some(group) = &world.group else {
        return Ok(());
    };
    if group.limit(TIGHT) {
        world.events.count(&world.events.squeezed, "memory tight");
        pause(world, dice, 1000, 5000);
    }
    group.unlimited();
    world.events.say("memory as usual");
    Ok(())
}
