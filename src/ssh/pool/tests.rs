use super::*;

fn route(name: &str) -> Route {
    Route::resolve(&Target::parse(name).unwrap(), &Options::default()).unwrap().0
}

#[tokio::test]
async fn slots_are_shared_while_used_and_swept_when_idle() {
    let pool = Pool::new(Options::default()).unwrap().shared;
    let one = pool.lease(route("u@box:22")).unwrap();
    let same = pool.lease(route("ssh -p 22 u@box")).unwrap();
    let other = pool.lease(route("u@box:23")).unwrap();
    assert!(Arc::ptr_eq(&one.slot, &same.slot) && !Arc::ptr_eq(&one.slot, &other.slot));
    let later = Instant::now() + GRACE * 2;
    drop((one, other));
    assert_eq!(pool.sweep(Instant::now()).len(), 0, "the grace time has not passed");
    assert_eq!(pool.sweep(later).len(), 1, "one of the two is still in use");
    drop(same);
    assert_eq!(pool.sweep(later).len(), 1);
    assert!(lock(&pool.slots).is_empty());
}

#[tokio::test]
async fn a_closed_pool_makes_no_connections() {
    let pool = Pool::new(Options::default()).unwrap();
    pool.close_all().await;
    let refused = pool.connect(&Target::parse("u@127.0.0.1:1").unwrap()).await;
    assert!(matches!(refused, Err(SshError::Closed)));
}

#[test]
fn limits_of_zero_are_refused() {
    let zero = Options { keepalive: Duration::ZERO, ..Options::default() };
    assert_eq!(Pool::new(zero).unwrap_err().to_string(), "keepalive must be more than 0");
}
