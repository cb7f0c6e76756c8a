package bench

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"token.place/e2e/internal/testnet"
)

// collections finds the heap after each garbage collection in what the Go
// runtime prints when asked: "gc 3 @0.1s 2%: … 4->5->2 MB, …".
var collections = regexp.MustCompile(`(?m)^gc \d+ .* \d+->\d+->(\d+) MB,`)

// BenchmarkIdleNodes is the memory that 10,000 connected nodes without work
// cost a relay, and its CPU while they stay.
func BenchmarkIdleNodes(b *testing.B) {
	const nodes = 10_000
	relay := testnet.StartRelay(b, testnet.Command{Env: []string{"GODEBUG=gctrace=1"}})
	before, used := testnet.RSS(b, relay.PID()), testnet.CPU(b, relay.PID())
	var fleet fleetLine
	startPart(b, "fleet", &fleet, relay.URL, strconv.Itoa(nodes))
	joined := testnet.CPU(b, relay.PID()) - used
	// Past the burst of handshakes, with a heartbeat to each of them: what the
	// collector gives back to the kernel in this time does not count.
	const stay = 40 * time.Second
	used = testnet.CPU(b, relay.PID())
	time.Sleep(stay)
	idle := testnet.CPU(b, relay.PID()) - used
	after := testnet.RSS(b, relay.PID())
	heap := 0.0
	if all := collections.FindAllStringSubmatch(relay.Stderr(), -1); len(all) > 0 {
		heap, _ = strconv.ParseFloat(all[len(all)-1][1], 64)
	}
	fmt.Fprintf(os.Stderr, "RSS %d MB before, %d MB after; %d nodes joined in %d ms\n", before>>20, after>>20, fleet.Nodes, fleet.Took)
	report(b, map[string]float64{
		"rss-kB/node":  float64(after-before) / 1000 / nodes,
		"heap-kB/node": heap * 1.048576e6 / 1000 / nodes,
		"join-cpu-ms":  millis(joined) / nodes,
		"idle-cpu-%":   100 * idle.Seconds() / stay.Seconds(),
	})
}
