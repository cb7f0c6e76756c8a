module token.place/e2e

go 1.26.0

require (
	github.com/cloudflare/circl v1.6.1
	github.com/openai/openai-go/v3 v3.96.0
	github.com/openpcc/ohttp v0.0.37
	github.com/sashabaranov/go-openai v1.43.0
	token.place v0.0.0
)

// openpcc/ohttp asks for older versions of these two, one of which cannot be had.
require (
	github.com/openpcc/bhttp v0.0.37 // indirect
	github.com/openpcc/twoway v0.0.37 // indirect
)

require (
	github.com/coder/websocket v1.8.15 // indirect
	github.com/quic-go/quic-go v0.56.0 // indirect
	github.com/tidwall/gjson v1.20.0 // indirect
	github.com/tidwall/match v1.1.1 // indirect
	github.com/tidwall/pretty v1.2.1 // indirect
	github.com/tidwall/sjson v1.2.5 // indirect
	go.opentelemetry.io/otel v1.38.0 // indirect
	go.opentelemetry.io/otel/trace v1.38.0 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/mod v0.42.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)

replace token.place => ../
