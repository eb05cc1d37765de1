//! What serves the VM from the first event to the last: the console, the control socket, the signal to end. Started once,
//! after sealing; a machine that is built again after a guest reset finds them running.

use std::sync::{Arc, mpsc::SyncSender};

use anyhow::{Context, Result};
use rebec_devices::Threads;

use crate::{
    control::{self, Server},
    event::Event,
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
        let told = events.clone();
        threads.spawn("stop", Box::new(move || hear(stop, &told))).context("start the thread that hears signals")?;
        let told = events.clone();
        let quit = Box::new(move || told.try_send(Event::Terminate).unwrap_or_default());
        let console = Arc::new(serial.start(&*threads, quit).context("serial: start its thread")?);
        let control = control.map(|bound| bound.start(threads, events.clone())).transpose().context("control: start its thread")?;
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

/// An orderly end is asked for once: whoever asks again does not want to wait.
fn hear(mut stop: StopSignal, events: &SyncSender<Event>) {
    if stop.wait() == Ending::Orderly {
        events.send(Event::PowerButton).unwrap_or_default();
        stop.wait();
    }
    events.send(Event::Terminate).unwrap_or_default();
}
