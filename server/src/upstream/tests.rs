use super::*;
use crate::gateway::OnBehalf;

const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(1), first_byte: Duration::from_secs(1), idle: Duration::from_secs(1) };

fn upstream(url: &str) -> Result<Upstream, UpstreamError> {
    upstream_of(UpstreamKind::OpenAi, url)
}

fn upstream_of(kind: UpstreamKind, url: &str) -> Result<Upstream, UpstreamError> {
    let key = Some("sk-secret");
    Upstream::new(&UpstreamSettings {
        kind,
        url,
        model: "org/\"big\"",
        key,
        health_path: "/v1/models",
        timeouts: TIMEOUTS,
    })
}

fn call(body: &str) -> Call {
    Call { route: CallRoute::Chat, body: body.into(), on_behalf: None }
}

#[test]
fn every_spelling_of_a_url_leads_to_the_same_routes() {
    for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
        let address = upstream(url).unwrap().address;
        assert_eq!(address.chat.to_string(), "http://h:1/v1/chat/completions");
        assert_eq!(address.health.to_string(), "http://h:1/v1/models");
    }
    for odd in ["", "h:1", "ftp://h", "http://", "unix:/x", "http://h h"] {
        assert!(matches!(upstream(odd), Err(UpstreamError::Url(_))), "{odd}");
    }
}

#[tokio::test]
async fn a_request_carries_the_upstreams_name_for_the_model_and_its_key() {
    let request = upstream("http://h:1").unwrap().request(&call(r#"{"stream":true}"#)).unwrap();
    assert_eq!(request.headers()[AUTHORIZATION], "Bearer sk-secret");
    let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, r#"{"model":"org/\"big\"","stream":true}"#);
}

#[test]
fn the_key_is_never_printed() {
    let upstream = upstream("http://h:1").unwrap();
    let request = upstream.request(&call("{\"a\":1}")).unwrap();
    assert!(!format!("{upstream:?} {request:?}").contains("sk-secret"));
    let key = Some("line\nbreak");
    let kind = UpstreamKind::OpenAi;
    let settings = UpstreamSettings { kind, url: "http://h", model: "m", key, health_path: "/", timeouts: TIMEOUTS };
    assert!(!Upstream::new(&settings).unwrap_err().to_string().contains("line"));
}

#[tokio::test]
async fn only_a_passerelle_is_told_for_whom_a_request_is_and_how_urgent() {
    let on_behalf = OnBehalf { reservation: "rsv_1".into(), account: "acme/vision".parse().unwrap(), tier: "flex" };
    let call = Call { on_behalf: Some(on_behalf), ..call("{\"a\":1}") };
    let told = upstream_of(UpstreamKind::Passerelle, "http://h:1").unwrap().request(&call).unwrap();
    assert_eq!(told.headers()[RESERVATION], "rsv_1");
    assert_eq!(told.headers()[ACCOUNT], "acme/vision");
    let other = upstream("http://h:1").unwrap().request(&call).unwrap();
    assert!(!other.headers().contains_key(RESERVATION) && !other.headers().contains_key(ACCOUNT));
    let mut bodies = Vec::new();
    for request in [told, other] {
        bodies.push(http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes());
    }
    assert_eq!(bodies[0], r#"{"model":"org/\"big\"","service_tier":"flex","a":1}"#);
    assert_eq!(bodies[1], r#"{"model":"org/\"big\"","a":1}"#);
}
