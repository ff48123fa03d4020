#!/usr/bin/env bash
# Other servers to measure against, on loopback: nginx as a file server, as a proxy before it (two hops, as gateway and
# node) and as a cache; Garage with one node and its settings for durability on.
#
#   bench/peers.sh start DIR     starts what is installed (Debian: nginx; Rust: `cargo install garage`), prints targets
#   bench/peers.sh stop DIR      ends it and removes DIR
#
# The targets are for `bench compare get-1m --target ours=dozo-data/endpoints.json --target …`. Ports from PORT_BASE on
# (8700): file server, proxy, cache, then three of Garage.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,11s/^# \?//p' "$0"; exit 2; }
dir=$(mkdir -p "$2" && cd "$2" && pwd)
port=${PORT_BASE:-8700}

# nginx with the configuration of standard input, $1 its name.
nginx_with() {
    { if [ "$EUID" -eq 0 ]; then printf 'user root; '; fi
      printf 'daemon off; worker_processes %s; error_log %s/%s.log; pid %s/%s.pid;\n' "$(nproc)" "$dir" "$1" "$dir" "$1"
      printf 'events { worker_connections 4096; }\nhttp { access_log off; tcp_nodelay on; keepalive_requests 100000000;\n'
      printf 'client_max_body_size 0; client_body_temp_path %s/%s.body; proxy_temp_path %s/%s.proxy;\n' "$dir" "$1" "$dir" "$1"
      cat
      printf '}\n'
    } > "$dir/$1.conf"
    nginx -e "$dir/$1.log" -c "$dir/$1.conf" > "$dir/$1.out" 2>&1 &
}

await() { # a URL
    for _ in $(seq 200); do
        if curl -s -o /dev/null "$1"; then return; fi
        sleep 0.1
    done
    echo "$1 does not answer; see $dir" >&2
    exit 1
}

start_nginx() {
    mkdir -p "$dir/files" "$dir/cache"
    chmod 755 "$dir" "$dir/files"
    nginx_with static <<EOF
sendfile on; tcp_nopush on; open_file_cache max=100000;
server { listen 127.0.0.1:$port; root $dir/files; dav_methods PUT DELETE; create_full_put_path on; }
EOF
    nginx_with proxy <<EOF
upstream files { server 127.0.0.1:$port; keepalive 256; keepalive_requests 100000000; }
proxy_http_version 1.1; proxy_set_header Connection "";
server { listen 127.0.0.1:$((port + 1));
    location / { proxy_pass http://files; proxy_buffer_size 64k; proxy_buffers 32 64k; proxy_max_temp_file_size 0; } }
proxy_cache_path $dir/cache keys_zone=hot:10m max_size=4g; sendfile on; tcp_nopush on;
server { listen 127.0.0.1:$((port + 2)); location / { proxy_pass http://files; proxy_cache hot; proxy_cache_valid 200 1h; } }
EOF
    await "http://127.0.0.1:$port/"
    await "http://127.0.0.1:$((port + 2))/"
    echo "--target nginx-proxy=http://127.0.0.1:$((port + 1))/ --root nginx-proxy=$dir/files"
    echo "--target nginx-cache=http://127.0.0.1:$((port + 2))/ --root nginx-cache=$dir/files"
}

start_garage() {
    cat > "$dir/garage.toml" <<EOF
metadata_dir = "$dir/garage-meta"
data_dir = "$dir/garage-data"
db_engine = "lmdb"
metadata_fsync = true
data_fsync = true
replication_factor = 1
compression_level = "none"
rpc_bind_addr = "127.0.0.1:$((port + 4))"
rpc_public_addr = "127.0.0.1:$((port + 4))"
rpc_secret = "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:$((port + 3))"
root_domain = ".s3.localhost"
EOF
    local garage=(garage -c "$dir/garage.toml")
    "${garage[@]}" server > "$dir/garage.log" 2>&1 &
    echo $! > "$dir/garage.pid"
    await "http://127.0.0.1:$((port + 3))/"
    local node
    node=$("${garage[@]}" node id -q | cut -d@ -f1)
    "${garage[@]}" layout assign -z here -c 20G "$node" > /dev/null
    "${garage[@]}" layout apply --version 1 > /dev/null
    "${garage[@]}" bucket create bench > /dev/null
    "${garage[@]}" key create bench > "$dir/garage.key"
    "${garage[@]}" bucket allow --read --write bench --key bench > /dev/null
    local id secret
    id=$(sed -n 's/^Key ID: *//p' "$dir/garage.key")
    secret=$(sed -n 's/^Secret key: *//p' "$dir/garage.key")
    echo "--target garage=s3://$id:$secret@127.0.0.1:$((port + 3))/bench"
}

case "$1" in
start)
    if command -v nginx > /dev/null; then start_nginx; else echo "nginx is not installed" >&2; fi
    if command -v garage > /dev/null; then start_garage; else echo "garage is not installed" >&2; fi
    ;;
stop)
    for file in "$dir"/*.pid; do
        if [ -s "$file" ]; then kill "$(cat "$file")" 2>/dev/null || true; fi
    done
    rm -rf "$dir"
    ;;
*) echo "start or stop, not $1" >&2; exit 2 ;;
esac
