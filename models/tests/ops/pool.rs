use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use passerelle_models::ops::ComputePool;

fn counts(pool: &ComputePool, num_tasks: usize) -> Vec<usize> {
    let counts: Vec<_> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(num_tasks, &|task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_runs_exactly_once() {
    for threads in [0, 1, 2, 5] {
        let pool = ComputePool::new(threads);
        assert_eq!(pool.num_threads(), threads.max(1));
        for num_tasks in [0, 1, 2, 3, 7, 1000] {
            assert_eq!(counts(&pool, num_tasks), vec![1; num_tasks], "{num_tasks} tasks on {threads} threads");
        }
    }
}

#[test]
fn many_short_jobs_in_a_row_are_all_complete() {
    let pool = ComputePool::new(4);
    for round in 0..20_000 {
        let done = AtomicUsize::new(0);
        pool.run(5, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 5, "round {round}");
    }
}

#[test]
fn callers_on_several_threads_share_the_pool() {
    let pool = ComputePool::new(3);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(counts(&pool, 9), vec![1; 9]);
                }
            });
        }
    });
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = ComputePool::new(3);
    for round in 0..50 {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(20, &|task| assert!(task != 11, "task eleven"));
        }));
        let payload = result.expect_err("the panic of a task");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"task eleven"), "round {round}");
        assert_eq!(counts(&pool, 50), vec![1; 50]);
    }
}

#[test]
fn sleeping_workers_are_woken_and_joined() {
    let pool = ComputePool::new(3);
    let (entered, release) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Two tasks that wait for each other can only end if two threads run them, however deeply the worker slept.
    for _ in 0..20 {
        entered.store(0, Ordering::SeqCst);
        for _ in 0..2_000_000 / 20 {
            std::hint::spin_loop();
        }
        pool.run(2, &|_| {
            entered.fetch_add(1, Ordering::SeqCst);
            while entered.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            release.fetch_add(1, Ordering::SeqCst);
        });
    }
    assert_eq!(release.into_inner(), 40);
    drop(pool);
}
