//! Where a server is, and the bytes of a request to it.

use super::Request;

/// `http://host:port/prefix`, or `https://`; a trailing `/v1` is accepted, because clients' base URLs have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    pub scheme: Scheme,
    /// `host:port`, also the Host header.
    pub authority: String,
    pub prefix: String,
    /// Sent with every request, besides those that it needs: name and value.
    pub headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Endpoint {
    pub fn parse(url: &str) -> Result<Self, String> {
        let schemes = [("http://", Scheme::Http), ("https://", Scheme::Https)];
        let Some((rest, scheme)) =
            schemes.into_iter().find_map(|(start, scheme)| Some((url.strip_prefix(start)?, scheme)))
        else {
            return Err(format!("`{url}` must start with http:// or https://"));
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.contains('@') {
            return Err(format!("`{url}` names no host"));
        }
        if rest.contains(['?', '#']) {
            return Err(format!("`{url}` must be a host and a path, without a query"));
        }
        // An IPv6 address has colons of its own, within brackets.
        let after_address = host.rsplit_once(']').map_or(host, |(_, after)| after);
        let authority = match after_address.split_once(':').map(|(_, port)| (port, port.parse::<u16>())) {
            None => format!("{host}:{}", scheme.default_port()),
            Some((_, Ok(1..))) => host.to_owned(),
            Some((port, _)) => return Err(format!("`{url}`: `{port}` is no port, which is 1 to 65535")),
        };
        let path = path.trim_end_matches('/');
        let path = match path.strip_suffix("v1") {
            Some(before) if before.is_empty() || before.ends_with('/') => before.trim_end_matches('/'),
            _ => path,
        };
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { scheme, authority, prefix, headers: Vec::new() })
    }

    /// Plain, and without a prefix.
    pub fn at(authority: String) -> Self {
        Self { scheme: Scheme::Http, authority, prefix: String::new(), headers: Vec::new() }
    }

    /// Whether load on it stays on this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        host.trim_matches(['[', ']'])
    }

    pub fn port(&self) -> Option<u16> {
        self.authority.rsplit_once(':')?.1.parse().ok()
    }

    /// The bytes of a request.
    pub fn encode(&self, request: &Request) -> Vec<u8> {
        let Request { method, path, api_key, body } = request;
        let mut head = format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n", self.prefix, self.authority);
        if let Some(key) = api_key {
            head.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || *method == "POST" {
            head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_clients_write_them() {
        let endpoint = |url| Endpoint::parse(url).map(|endpoint| (endpoint.authority, endpoint.prefix));
        assert_eq!(endpoint("http://127.0.0.1:8080"), Ok(("127.0.0.1:8080".into(), String::new())));
        assert_eq!(endpoint("http://localhost:9/v1/"), Ok(("localhost:9".into(), String::new())));
        assert_eq!(endpoint("http://host/api/v1"), Ok(("host:80".into(), "/api".into())));
        assert_eq!(endpoint("https://host/v1"), Ok(("host:443".into(), String::new())));
        assert!(endpoint("host:80").is_err() && endpoint("ftp://host").is_err() && endpoint("http://").is_err());
        assert_eq!(endpoint("http://host/apiv1"), Ok(("host:80".into(), "/apiv1".into())));
        assert_eq!(endpoint("http://[::1]"), Ok(("[::1]:80".into(), String::new())));
        assert_eq!(endpoint("http://[::1]:9"), Ok(("[::1]:9".into(), String::new())));
        for wrong in ["http://host:99999", "http://host:0", "http://host:x/v1", "http://::1", "http://host/v1?a=b"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Endpoint::parse("https://host").unwrap().scheme, Scheme::Https);
    }

    #[test]
    fn further_headers_are_sent_with_every_request() {
        let headers = vec![("X-Team".to_owned(), "blue".to_owned())];
        let endpoint = Endpoint { headers, ..Endpoint::at("host:1".to_owned()) };
        let request = Request { method: "GET", path: "/v1/models", api_key: None, body: b"" };
        let bytes = String::from_utf8(endpoint.encode(&request)).unwrap();
        assert_eq!(bytes, "GET /v1/models HTTP/1.1\r\nHost: host:1\r\nX-Team: blue\r\n\r\n");
    }

    #[test]
    fn loopback_is_told_from_elsewhere() {
        let is_loopback = |url| Endpoint::parse(url).unwrap().is_loopback();
        assert!(is_loopback("http://127.0.0.1:1") && is_loopback("http://[::1]:1") && is_loopback("http://localhost"));
        assert!(!is_loopback("http://10.0.0.1:1") && !is_loopback("http://example.org"));
    }
}
