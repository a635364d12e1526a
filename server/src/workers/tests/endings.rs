//! What ends without anybody saying so, and who is told.

use tokio::io::copy_bidirectional;

use super::*;

/// Of a worker that is run by hand.
fn parts(stage: &Stage) -> WorkerParts {
    let bell = Arc::new(Notify::new());
    let tap = Arc::new(StepTap::new(Arc::clone(&bell)));
    let revive: Revive = Arc::new(|_| None);
    let models = vec![WorkerModel { door: Box::new(Script::default()), tap, revive }];
    let clock: Arc<dyn Clock> = Arc::new(stage.clock.clone());
    WorkerParts { facts: facts("a", None), models, bell, clock, patience: PATIENCE }
}

#[tokio::test]
async fn who_leaves_while_a_successor_is_awaited_keeps_nobody_out() {
    let stage = Stage::new();
    let mut worker = stage.worker().await;
    worker.ask_to_leave();
    until(|| stage.replica.load().presence == Presence::HandingOver).await;
    let [first, _second] = [0; 2].map(|_| stage.replica.submit(request(None)).unwrap());
    assert_eq!(stage.replica.submit(request(None)).unwrap_err(), ReplicaRefusal::QueueFull);
    drop(first);
    let _third = stage.replica.submit(request(None)).expect("there is a place again");
    assert_eq!(stage.replica.submit(request(None)).unwrap_err(), ReplicaRefusal::QueueFull);
}

#[tokio::test]
async fn a_server_that_ends_tells_also_those_whose_worker_was_leaving() {
    let stage = Stage::new();
    let mut worker = stage.worker().await;
    let mut stream = stage.replica.submit(request(None)).unwrap();
    worker.given(1).await;
    worker.ask_to_leave();
    until(|| stage.replica.load().presence == Presence::HandingOver).await;
    let mut held = stage.replica.submit(request(None)).unwrap();
    stage.slot.shut_down();
    for stream in [&mut stream, &mut held] {
        let told = timeout(PATIENCE, stream.next()).await.expect("it is told");
        assert!(matches!(&told, Some(Event::Failed { error: RequestError::WorkerLost, .. })), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_takes_a_worker_s_connection_and_says_nothing_is_given_up() {
    let (_here, there) = duplex(PIPE_BYTES);
    let stage = Stage::new();
    let works = work(dial(there).await.unwrap(), parts(&stage), std::future::pending());
    let ended = timeout(PATIENCE, works).await.expect("it does not wait for ever");
    assert!(matches!(ended, Err(WorkError::GatewayGone)), "{ended:?}");
}

/// As when its machine loses its power: what is sent to it vanishes, and nobody hangs up.
#[tokio::test(start_paused = true)]
async fn a_gateway_that_vanishes_without_a_word_is_given_up() {
    const ROOM_FOR_HOURS: usize = 1 << 20;
    let stage = Stage::new();
    let (here, mut beside_gateway) = duplex(ROOM_FOR_HOURS);
    let (mut beside_worker, there) = duplex(ROOM_FOR_HOURS);
    tokio::spawn(stage.gate.clone().serve(here, Peer::Owner));
    let parts = parts(&stage);
    let works = tokio::spawn(async move { work(dial(there).await.unwrap(), parts, std::future::pending()).await });
    tokio::select! {
        ended = copy_bidirectional(&mut beside_gateway, &mut beside_worker) => panic!("{ended:?}"),
        // It was let in, and has said something since.
        () = until(|| stage.replica.load().progress > 0) => {}
    }
    let ended = timeout(3 * PATIENCE, works).await.expect("it is noticed").unwrap();
    assert!(matches!(ended, Err(WorkError::Broken(_) | WorkError::GatewayGone)), "{ended:?}");
}
