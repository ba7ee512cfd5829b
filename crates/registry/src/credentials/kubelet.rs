//! Credentials from the kubelet's credential-provider plugins.
//!
//! [`KubeletPlugins`] reads the kubelet's own configuration and runs the plugins as the kubelet
//! does. Answers are kept in memory for as long as they say, and asked for anew if a registry
//! refuses what they contain. Plugins for different images run at the same time, as tasks of this
//! module: a request that gives up does not end them, and requests that one run can answer wait for
//! that run. A plugin that fails is left out, and runs again after a pause.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{Credential, Credentials};
use soci_oci::reference::ImageRef;

mod config;
mod files;
mod pattern;
mod plugin;

use files::Files;
use plugin::{Answer, KeyType, Plugin};

/// How long a plugin that failed is not asked again.
const PAUSE: Duration = Duration::from_secs(10);
/// An answer at least this old is dropped if the registry refuses its credential. A plugin that
/// always gives a useless one therefore does not run for every request.
const FRESH: Duration = Duration::from_secs(30);
/// Above this number of answers, those that no longer hold are dropped.
const MANY_ANSWERS: usize = 1024;

/// Where the kubelet's plugins are configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginOptions {
    /// A `CredentialProviderConfig`, or a directory of them.
    pub config: PathBuf,
    /// The directory with the plugins.
    pub bin_dir: PathBuf,
    /// How long a plugin may run.
    pub limit: Duration,
}

/// The kubelet's plugins. Their configuration is read again when its files change.
#[derive(Debug)]
pub struct KubeletPlugins {
    files: Files,
    providers: Mutex<Vec<Arc<Provider>>>,
    /// Plugins that run. Dropping this value ends them.
    tasks: Mutex<JoinSet<()>>,
}

impl KubeletPlugins {
    /// Uses these plugins. Reads the configuration when the first credential is asked for.
    pub fn new(options: PluginOptions) -> KubeletPlugins {
        KubeletPlugins {
            files: Files::new(options),
            providers: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// The plugins that are configured now. A changed configuration starts without answers.
    async fn providers(&self) -> Vec<Arc<Provider>> {
        if let Some(plugins) = self.files.changed().await {
            let providers = plugins.into_iter().map(Provider::new).map(Arc::new);
            *self.known() = providers.collect();
        }
        self.known().clone()
    }

    fn known(&self) -> MutexGuard<'_, Vec<Arc<Provider>>> {
        self.providers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Credentials for KubeletPlugins {
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential> {
        let image = name_of(host, image);
        for provider in self.providers().await {
            if provider.plugin.is_for(&image)
                && let Some(found) = provider.credential(&image, &self.tasks).await
            {
                return Some(found);
            }
        }
        None
    }

    fn refused(&self, host: &str, image: &ImageRef) {
        let image = name_of(host, image);
        for provider in self.known().iter() {
            provider.forget(&image);
        }
    }
}

/// The image as the kubelet names it: without tag and digest. For a mirror, the mirror's own name.
fn name_of(host: &str, image: &ImageRef) -> String {
    let host = match host {
        "registry-1.docker.io" | "index.docker.io" => "docker.io",
        host => host,
    };
    format!("{host}/{}", image.repository())
}

/// What an answer is kept under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Image(String),
    Registry(String),
    Global,
}

impl Key {
    fn of(key_type: KeyType, image: &str) -> Key {
        match key_type {
            KeyType::Image => Key::Image(image.to_owned()),
            KeyType::Registry => {
                let host = image.split('/').next().unwrap_or(image);
                Key::Registry(host.to_owned())
            }
            KeyType::Global => Key::Global,
        }
    }
}

/// An answer, or a failure.
#[derive(Debug)]
struct Kept {
    answer: Option<Arc<Answer>>,
    since: Instant,
    until: Instant,
}

/// What a run came to, and the image that it was for.
#[derive(Debug)]
struct Outcome {
    image: String,
    answer: Option<Arc<Answer>>,
}

/// A run, which has an outcome when it has ended.
type Run = watch::Receiver<Option<Arc<Outcome>>>;

#[derive(Debug, Default)]
struct State {
    /// What the last answer was for. Until the first one, a run is assumed to answer for its
    /// registry.
    key_type: Option<KeyType>,
    kept: HashMap<Key, Kept>,
    runs: HashMap<Key, Run>,
}

impl State {
    fn find(&self, image: &str) -> Option<&Kept> {
        let now = Instant::now();
        let types = [KeyType::Image, KeyType::Registry, KeyType::Global];
        let mut found = types.into_iter().filter_map(|it| {
            let kept = self.kept.get(&Key::of(it, image))?;
            (now < kept.until).then_some(kept)
        });
        found.next()
    }

    fn keep(&mut self, key: Key, answer: Option<Arc<Answer>>, holds: Duration) {
        let now = Instant::now();
        if self.kept.len() >= MANY_ANSWERS {
            self.kept.retain(|_, kept| now < kept.until);
        }
        if holds.is_zero() || self.kept.len() >= 2 * MANY_ANSWERS {
            return;
        }
        // A duration beyond the clock's range holds for a year.
        let year = Duration::from_secs(365 * 24 * 3600);
        let until = now.checked_add(holds.min(year)).unwrap_or(now);
        let kept = Kept {
            answer,
            since: now,
            until,
        };
        self.kept.insert(key, kept);
    }
}

/// A plugin with its answers.
#[derive(Debug)]
struct Provider {
    plugin: Plugin,
    state: Mutex<State>,
}

impl Provider {
    fn new(plugin: Plugin) -> Provider {
        Provider {
            plugin,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The credential for an image, from memory or from the plugin.
    async fn credential(
        self: &Arc<Self>,
        image: &str,
        tasks: &Mutex<JoinSet<()>>,
    ) -> Option<Credential> {
        // A run for another image of the registry may turn out to answer for that image only.
        // Afterwards the type is known, so the second run is for this image.
        for _ in 0..3 {
            let mut run = {
                let mut state = self.state();
                if let Some(kept) = state.find(image) {
                    let answer = kept.answer.as_ref()?;
                    return answer.credential(image).cloned();
                }
                let key = Key::of(state.key_type.unwrap_or(KeyType::Registry), image);
                match state.runs.get(&key) {
                    // A closed channel without an outcome means that the task died.
                    Some(run) if run.has_changed().is_ok() => run.clone(),
                    _ => self.start(&mut state, key, image, tasks),
                }
            };
            let Ok(ended) = run.wait_for(Option::is_some).await else {
                continue;
            };
            let outcome = ended.clone()?;
            drop(ended);
            let is_for = |answer: &Arc<Answer>| {
                outcome.image == image
                    || Key::of(answer.key_type, &outcome.image) == Key::of(answer.key_type, image)
            };
            match &outcome.answer {
                Some(answer) if is_for(answer) => return answer.credential(image).cloned(),
                None if outcome.image == image => return None,
                _ => {}
            }
        }
        None
    }

    /// Starts a run for an image.
    fn start(
        self: &Arc<Self>,
        state: &mut State,
        key: Key,
        image: &str,
        tasks: &Mutex<JoinSet<()>>,
    ) -> Run {
        let (done, run) = watch::channel(None);
        state.runs.insert(key.clone(), run.clone());
        let (provider, image) = (Arc::clone(self), image.to_owned());
        let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let outcome = provider.run(&image).await;
            provider.state().runs.remove(&key);
            done.send_replace(Some(Arc::new(outcome)));
        });
        run
    }

    /// Runs the plugin and keeps what it says.
    async fn run(&self, image: &str) -> Outcome {
        let answer = match self.plugin.ask(image).await {
            Ok(answer) => {
                let (key_type, holds) = (answer.key_type, answer.holds);
                let answer = Arc::new(answer);
                let mut state = self.state();
                state.key_type = Some(key_type);
                let key = Key::of(key_type, image);
                state.keep(key, Some(Arc::clone(&answer)), holds);
                Some(answer)
            }
            Err(error) => {
                tracing::warn!(
                    provider = self.plugin.name,
                    image,
                    %error,
                    "a credential provider failed, going on without it (run it by hand to see what it says)"
                );
                self.state().keep(Key::Image(image.to_owned()), None, PAUSE);
                None
            }
        };
        let image = image.to_owned();
        Outcome { image, answer }
    }

    /// Drops the answer for an image, unless it is new.
    fn forget(&self, image: &str) {
        let now = Instant::now();
        let mut state = self.state();
        for key_type in [KeyType::Image, KeyType::Registry, KeyType::Global] {
            let key = Key::of(key_type, image);
            let old = |kept: &Kept| {
                kept.answer.is_some() && now.saturating_duration_since(kept.since) >= FRESH
            };
            if state.kept.get(&key).is_some_and(old) {
                state.kept.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
