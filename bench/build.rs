//! RocksDB is linked through its C library, so that nothing of it is built here.

fn main() {
    if std::env::var_os("CARGO_FEATURE_ROCKSDB").is_some() {
        println!("cargo:rustc-link-lib=dylib=rocksdb");
    }
}
