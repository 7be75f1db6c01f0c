//! A cache bounded in bytes whose misses are loaded once: whoever comes second waits for the first.
//!
//! Sharded by key; no lock is held while a value is loaded. Eviction is second-chance first-in-first-out (CLOCK).

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::ReadError;

/// What an entry costs beyond its value: two keys, a slot, the spare room of the tables; bytes.
const ENTRY_OVERHEAD: usize = 128;
/// More shards than this gain nothing: the work under a lock is a table look-up.
const SHARDS_MAX: usize = 16;
/// With fewer entries a shard than this, chance would decide what is evicted.
const SHARD_ENTRIES_MIN: usize = 8;

/// Values by key, at most a budget's bytes of them.
pub(super) struct Cache<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    /// Bytes one shard may keep.
    shard_budget: usize,
    hasher: RandomState,
}

struct Shard<K, V> {
    slots: HashMap<K, Slot<V>>,
    /// Keys of the ready slots, oldest first.
    order: VecDeque<K>,
    bytes: usize,
}

enum Slot<V> {
    Ready { value: V, bytes: usize, used: bool },
    Loading(Arc<Load<V>>),
}

/// What a caller met under its key.
enum Found<V> {
    Ready(V),
    Loading(Arc<Load<V>>),
    /// Nothing; the caller has just become the loader.
    Nothing(Arc<Load<V>>),
}

/// One load under way, and those who wait for it.
struct Load<V> {
    outcome: Mutex<Outcome<V>>,
    ended: Condvar,
}

enum Outcome<V> {
    Loading,
    Loaded(V),
    Failed(ReadError),
    /// The loader panicked: somebody else has to try.
    Abandoned,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    /// A cache of `budget` bytes for values of about `typical` bytes.
    pub(super) fn new(budget: usize, typical: usize) -> Cache<K, V> {
        let shards = (budget / typical.saturating_mul(SHARD_ENTRIES_MIN).max(1)).clamp(1, SHARDS_MAX);
        Cache {
            shards: (0..shards).map(|_| Mutex::new(Shard::new())).collect(),
            shard_budget: budget / shards,
            hasher: RandomState::new(),
        }
    }

    /// The value of `key`: from the cache, from a load under way, or from `load`, which gives it with its size in
    /// bytes. An error goes to all who waited for that load, and is not kept.
    pub(super) fn get(
        &self,
        key: K,
        load: impl FnOnce() -> Result<(V, usize), ReadError>,
    ) -> Result<V, ReadError> {
        loop {
            match self.find(key) {
                Found::Ready(value) => return Ok(value),
                Found::Nothing(own) => return Loader { cache: self, key, load: own }.run(load),
                Found::Loading(other) => {
                    if let Some(result) = other.wait() {
                        return result;
                    }
                }
            }
        }
    }

    /// Lets go of a value that will not be wanted again. One that is being loaded stays.
    pub(super) fn forget(&self, key: &K) {
        let mut shard = self.shard(key);
        if let Some(Slot::Ready { bytes, .. }) = shard.slots.get(key) {
            let bytes = *bytes;
            let value = shard.slots.remove(key);
            shard.bytes = shard.bytes.saturating_sub(bytes);
            shard.forget_order(key);
            drop(shard);
            // Freed without the lock.
            drop(value);
        }
    }

    fn find(&self, key: K) -> Found<V> {
        let mut shard = self.shard(&key);
        match shard.slots.get_mut(&key) {
            Some(Slot::Ready { value, used, .. }) => {
                *used = true;
                Found::Ready(value.clone())
            }
            Some(Slot::Loading(load)) => Found::Loading(Arc::clone(load)),
            None => {
                let load = Arc::new(Load { outcome: Mutex::new(Outcome::Loading), ended: Condvar::new() });
                shard.slots.insert(key, Slot::Loading(Arc::clone(&load)));
                Found::Nothing(load)
            }
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the remainder of a division by the length, which is never 0"
    )]
    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        let shards = self.shards.len() as u64;
        let at = usize::try_from(self.hasher.hash_one(key) % shards).unwrap_or(0);
        lock(&self.shards[at])
    }

    /// Bytes kept at the moment, overhead included.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).bytes).sum()
    }
}

impl<K: Copy + Eq + Hash, V> Shard<K, V> {
    fn new() -> Shard<K, V> {
        Shard { slots: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    /// Keeps a value just loaded, unless it alone is over the budget.
    fn keep(&mut self, key: K, value: V, bytes: usize, budget: usize) {
        let bytes = bytes.saturating_add(ENTRY_OVERHEAD);
        self.slots.remove(&key);
        if bytes > budget {
            return;
        }
        self.shrink(budget - bytes);
        self.slots.insert(key, Slot::Ready { value, bytes, used: false });
        self.order.push_back(key);
        self.bytes += bytes;
    }

    /// Takes a key out of the order, where it is among the youngest: what is forgotten was loaded not long ago.
    fn forget_order(&mut self, key: &K) {
        if let Some(at) = self.order.iter().rposition(|other| other == key) {
            self.order.remove(at);
        }
    }

    /// Evicts until at most `budget` bytes are left; what was used since it last came up is spared once.
    fn shrink(&mut self, budget: usize) {
        while self.bytes > budget {
            let Some(key) = self.order.pop_front() else { return };
            match self.slots.get_mut(&key) {
                Some(Slot::Ready { used: used @ true, .. }) => {
                    *used = false;
                    self.order.push_back(key);
                }
                Some(Slot::Ready { bytes, .. }) => {
                    self.bytes = self.bytes.saturating_sub(*bytes);
                    self.slots.remove(&key);
                }
                Some(Slot::Loading(_)) | None => {}
            }
        }
    }
}

impl<V: Clone> Load<V> {
    /// Waits for the end of the load; nothing if the loader panicked.
    fn wait(&self) -> Option<Result<V, ReadError>> {
        let mut outcome = lock(&self.outcome);
        loop {
            match &*outcome {
                Outcome::Loading => {
                    outcome = self.ended.wait(outcome).unwrap_or_else(PoisonError::into_inner);
                }
                Outcome::Loaded(value) => return Some(Ok(value.clone())),
                Outcome::Failed(error) => return Some(Err(error.duplicate())),
                Outcome::Abandoned => return None,
            }
        }
    }
}

impl<V> Load<V> {
    /// Ends a load that is in no slot any more, so that nobody new begins to wait: waking costs a system call, which
    /// is spared where nobody waits.
    fn end(load: &Arc<Load<V>>, outcome: Outcome<V>) {
        *lock(&load.outcome) = outcome;
        if Arc::strong_count(load) > 1 {
            load.ended.notify_all();
        }
    }
}

/// The one who loads. Dropped by a panic of the load, it wakes the waiters so that none hangs.
struct Loader<'a, K: Copy + Eq + Hash, V: Clone> {
    cache: &'a Cache<K, V>,
    key: K,
    load: Arc<Load<V>>,
}

impl<K: Copy + Eq + Hash, V: Clone> Loader<'_, K, V> {
    fn run(self, load: impl FnOnce() -> Result<(V, usize), ReadError>) -> Result<V, ReadError> {
        let (value, bytes) = match load() {
            Ok(loaded) => loaded,
            Err(error) => {
                self.cache.shard(&self.key).slots.remove(&self.key);
                Load::end(&self.load, Outcome::Failed(error.duplicate()));
                return Err(error);
            }
        };
        self.cache.shard(&self.key).keep(self.key, value.clone(), bytes, self.cache.shard_budget);
        Load::end(&self.load, Outcome::Loaded(value.clone()));
        Ok(value)
    }
}

impl<K: Copy + Eq + Hash, V: Clone> Drop for Loader<'_, K, V> {
    fn drop(&mut self) {
        if !matches!(*lock(&self.load.outcome), Outcome::Loading) {
            return;
        }
        self.cache.shard(&self.key).slots.remove(&self.key);
        Load::end(&self.load, Outcome::Abandoned);
    }
}

/// Locks; a panic elsewhere leaves nothing half done under these locks, so poison means nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn failure() -> ReadError {
        ReadError::Corrupt { offset: 7, what: "nothing good".into() }
    }

    #[test]
    fn loads_a_key_once_and_keeps_it() {
        let cache = Cache::new(1 << 20, 100);
        let loads = AtomicUsize::new(0);
        for _ in 0..3 {
            let value = cache.get(5, || {
                loads.fetch_add(1, Ordering::Relaxed);
                Ok(("five", 100))
            });
            assert_eq!(value.unwrap(), "five");
        }
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn concurrent_readers_share_one_load() {
        let (cache, loads, start) = (Cache::new(1 << 20, 100), AtomicUsize::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    let value = cache.get(1, || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(50));
                        Ok((42, 8))
                    });
                    assert_eq!(value.unwrap(), 42);
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn a_value_over_the_budget_is_still_shared_with_those_who_wait() {
        let (cache, loads, start) = (Cache::new(0, 100), AtomicUsize::new(0), Barrier::new(4));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let value = cache.get(1, || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(100));
                        Ok((42, 8))
                    });
                    assert_eq!(value.unwrap(), 42);
                });
            }
        });
        assert!(loads.into_inner() < 4);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn an_error_reaches_all_who_waited_and_is_not_kept() {
        let (cache, loads, start) = (Cache::new(1 << 20, 100), AtomicUsize::new(0), Barrier::new(4));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let got: Result<u32, _> = cache.get(1, || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(100));
                        Err(failure())
                    });
                    assert_eq!(got.unwrap_err().to_string(), failure().to_string());
                });
            }
        });
        assert!(loads.into_inner() < 4);
        assert_eq!(cache.get(1, || Ok((3, 1))).unwrap(), 3);
    }

    #[test]
    fn a_panic_in_a_load_leaves_nobody_waiting() {
        let (cache, start) = (Cache::new(1 << 20, 100), Barrier::new(2));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                cache.get(1, || {
                    start.wait();
                    std::thread::sleep(Duration::from_millis(50));
                    panic!("meant to happen")
                })
            });
            start.wait();
            assert_eq!(cache.get(1, || Ok((9, 1))).unwrap(), 9);
            assert!(first.join().is_err());
        });
        assert_eq!(cache.get(1, || Err(failure())).unwrap(), 9);
    }

    #[test]
    fn stays_within_its_budget_and_spares_what_is_used() {
        let cache = Cache::new(100 * 1024, 1024);
        let mut reloads_of_the_used = 0;
        for key in 1..10_000_u32 {
            cache.get(key, || Ok((key, 1024))).unwrap();
            cache
                .get(0, || {
                    reloads_of_the_used += 1;
                    Ok((0, 1024))
                })
                .unwrap();
            assert!(cache.bytes() <= 100 * 1024);
        }
        assert!(cache.bytes() > 50 * 1024);
        assert_eq!(reloads_of_the_used, 1);
    }

    #[test]
    fn what_is_forgotten_is_loaded_again_and_counts_no_more() {
        let cache = Cache::new(64 * 1024, 1024);
        let keep = |key| cache.get(key, || Ok((key, 1024))).unwrap();
        let kept: Vec<u32> = (0..8).map(keep).collect();
        let before = cache.bytes();
        for key in kept {
            cache.forget(&key);
            cache.forget(&key);
        }
        assert_eq!((before > 0, cache.bytes()), (true, 0));
        assert_eq!(cache.get(3, || Ok((33, 1024))).unwrap(), 33);
        for key in 100..10_000 {
            keep(key);
            assert!(cache.bytes() <= 64 * 1024);
        }
    }

    #[test]
    fn tiny_values_count_their_overhead() {
        let cache = Cache::new(64 * 1024, 1024);
        for key in 0..10_000_u32 {
            cache.get(key, || Ok((key, 0))).unwrap();
        }
        let kept: usize = cache.shards.iter().map(|shard| lock(shard).slots.len()).sum();
        assert!(kept <= 64 * 1024 / ENTRY_OVERHEAD, "{kept}");
    }
}
