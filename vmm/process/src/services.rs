//! What serves the VM from the first event to the last: the console, the control socket, the signal to end. Started once,
//! after sealing; a machine that is built again after a guest reset finds them running.
//!
//! One loop, the thread `services`, hears what comes seldom and is answered at once: signals and newcomers at the control socket. What may wait for
//! somebody (the console for its reader, a connection for its client) has a thread of its own.

use std::sync::{
    Arc,
    mpsc::{SyncSender, TrySendError},
};

use anyhow::{Context, Result};
use event_manager::{EventOps, Events, MutEventSubscriber};
use rebec_devices::Threads;

use crate::{
    control::{self, Server},
    event::Event,
    heard::{self, Heard},
    seal::{Ending, StopSignal},
    serial::{Backend, Console},
    threads::ServiceThreads,
};

/// The running services.
pub struct Services {
    pub console: Arc<Console>,
    control: Option<Server>,
}

impl Services {
    /// Starts them; all report to `events`.
    pub fn start(serial: Backend, control: Option<control::Bound>, stop: StopSignal, events: &SyncSender<Event>) -> Result<Self> {
        let threads: Arc<dyn Threads> = Arc::new(ServiceThreads);
        let mut heard: Vec<Heard> = vec![Box::new(Signals { stop, was_told: false, events: events.clone() })];
        let control = match control {
            None => None,
            Some(bound) => {
                let (server, newcomers) = bound.serve(threads.clone(), events.clone()).context("control: listen")?;
                heard.push(Box::new(newcomers));
                Some(server)
            }
        };
        heard::listen(&*threads, heard)?;
        let told = events.clone();
        let quit = Box::new(move || told.try_send(Event::Terminate).unwrap_or_default());
        let console = Arc::new(serial.start(&*threads, quit).context("serial: start its thread")?);
        Ok(Self { console, control })
    }

    /// Lets the last output and the last answers reach their readers.
    pub fn finish(&self) {
        self.console.finish();
        if let Some(control) = &self.control {
            control.finish();
        }
    }
}

/// Whoever wants the process to end.
struct Signals {
    stop: StopSignal,
    was_told: bool,
    events: SyncSender<Event>,
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        heard::add(ops, "signals", &self.stop);
    }

    /// An orderly end is asked for once: whoever asks again does not want to wait. The owner's queue has room for more than can be asked at a time.
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let is_first = !std::mem::replace(&mut self.was_told, true);
        let event = if self.stop.read() == Ending::Orderly && is_first { Event::PowerButton } else { Event::Terminate };
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            log::warn!("signals: the VM is busy: send the signal again");
        }
    }
}
