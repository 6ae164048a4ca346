//! Servers that speak TLS, with a certificate of a private authority, and that do not.

use std::path::PathBuf;
use std::process::Command;

use super::chain;
use fred::interfaces::ClientLike;
use fred::rustls::{ClientConfig, RootCertStore};
use fred::types::Builder as FredBuilder;
use fred::types::config::{Config, ReconnectPolicy, TlsConnector};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use redis_locking_worker::{BuildError, Builder, LockEvent, LockingWorker};
use tempfile::TempDir;
use testkit::{Server, acquired, command, end, free_port, race};

struct Secured {
    server: Server,
    /// Where it speaks TLS; at the server's own it does not.
    port: u16,
    authority: rcgen::Certificate,
    dir: TempDir,
}

impl Secured {
    fn start() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();

        let dir = TempDir::new().unwrap();
        let file = |name, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let port = free_port();
        let server = Server::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &file("server.crt", certificate.pem()),
            "--tls-key-file",
            &file("server.key", key.serialize_pem()),
            "--tls-ca-cert-file",
            &file("authority.crt", authority.pem()),
            "--tls-auth-clients",
            "no",
        ]);
        Self {
            server,
            port,
            authority,
            dir,
        }
    }

    fn authority_file(&self) -> PathBuf {
        self.dir.path().join("authority.crt")
    }

    fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port)
    }

    /// A worker on a client that trusts the authority.
    async fn builder(&self) -> Builder {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let tls = ClientConfig::builder().with_root_certificates(roots);
        let mut config = Config::from_url(&self.url()).unwrap();
        config.tls = Some(TlsConnector::from(tls.with_no_client_auth()).into());
        let client = FredBuilder::from_config(config)
            .set_policy(ReconnectPolicy::new_constant(0, 20))
            .build()
            .unwrap();
        client.init().await.unwrap();
        LockingWorker::builder("job").client(client)
    }
}

async fn whole_run(a: Builder, b: Builder) {
    let (a, b) = (a.build().await.unwrap(), b.build().await.unwrap());
    let (_first, guard, mut second) = race(&a, &b).await;
    drop(guard);
    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 2);
    guard.done().await.unwrap();
    assert!(matches!(end(&mut second).await, LockEvent::Completed(_)));
    assert!(matches!(
        end(&mut a.acquire()).await,
        LockEvent::Completed(_)
    ));
}

#[tokio::test]
async fn a_run_takes_place_over_tls_with_an_authority_of_the_users_own() {
    let secured = Secured::start();
    let (a, b) = (secured.builder().await, secured.builder().await);
    whole_run(a, b).await;
    let clients = command(&secured.server.client().await, [b"CLIENT", b"LIST"]).await;
    let clients = clients.into_string().unwrap();
    let plain = format!("laddr=127.0.0.1:{} ", secured.server.port);
    assert_eq!(clients.matches(&plain).count(), 1, "ours: {clients}");
}

/// An authority that the environment names is trusted by an URL. That of a process can't be changed
/// beside other threads: so this is one of its own.
#[tokio::test]
async fn an_authority_in_the_environment_is_trusted_by_an_url() {
    const URL: &str = "TEST_SECURED_URL";
    if let Ok(url) = std::env::var(URL) {
        let build = || LockingWorker::builder("job").url(&url);
        return whole_run(build(), build()).await;
    }
    let secured = Secured::start();
    let this = "faults::tls::an_authority_in_the_environment_is_trusted_by_an_url";
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", this]).env(URL, secured.url());
    process.env("SSL_CERT_FILE", secured.authority_file());
    let output = process.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

async fn refused(url: &str) -> String {
    match LockingWorker::builder("job").url(url).build().await {
        Err(error @ BuildError::Connect { .. }) => chain(&error),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_an_error_at_build_that_says_so() {
    let said = refused(&Secured::start().url()).await;
    assert!(said.contains("UnknownIssuer"), "{said}");
}

#[tokio::test]
async fn tls_to_a_plain_port_and_the_other_way_round_are_errors_at_build() {
    let secured = Secured::start();
    for (scheme, port) in [("rediss", secured.server.port), ("redis", secured.port)] {
        let url = format!("{scheme}://127.0.0.1:{port}");
        println!("{}", refused(&url).await);
    }
}
