body='{"channel": "news", "event": "headline", "data": {"title": "from curl"}}'
key=headline-17
now=$(date +%s)
signature=$(printf '%s\n%s\n%s' "$now" "$key" "$body" |
  openssl dgst -sha256 -hmac "$PUBLISH_SECRET" | awk '{print $NF}')

curl --silent --show-error --fail-with-body --location --max-redirs 0 "$PUBLISH_URL" --data-raw "$body" \
  --header 'Content-Type: application/json' \
  --header "Idempotency-Key: $key" \
  --header "X-Signature: t=$now,v1=$signature"
