//! Which requests of one connection are being answered: what the bytes of the connection alone do not say.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::service::TowerToHyperService;

/// A connection's requests. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// One request, from the end of its head to that of its answer's body, however that comes.
#[derive(Debug)]
pub(super) struct Turn(Arc<Counts>);

/// The body of an answer, which ends its turn.
pub(super) struct Answer {
    body: Body,
    _turn: Turn,
}

impl Turns {
    /// How many answers have ended.
    pub(super) fn ended(&self) -> usize {
        self.counts.ended.load(Ordering::Acquire)
    }

    pub(super) fn is_any_running(&self) -> bool {
        self.counts.begun.load(Ordering::Acquire) > self.ended()
    }

    /// `router`, whose requests are counted here.
    pub(super) fn count(
        &self,
        router: Router,
    ) -> impl Service<Request<Incoming>, Response = Response<Answer>, Error = Infallible, Future: Send + 'static> + use<>
    {
        let (turns, router) = (self.clone(), TowerToHyperService::new(router));
        service_fn(move |request| {
            let turn = turns.begin();
            let answering = router.call(request);
            async move { Ok(answering.await?.map(|body| Answer { body, _turn: turn })) }
        })
    }

    pub(super) fn begin(&self) -> Turn {
        self.counts.begun.fetch_add(1, Ordering::AcqRel);
        Turn(Arc::clone(&self.counts))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
