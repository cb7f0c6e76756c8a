// Package bench measures the real processes against the aims that
// docs/benchmarks.md lists, each figure beside its yardstick in the same run:
//
//	go -C e2e test -run xxx -bench . -benchtime 1x ./bench
package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"token.place/e2e/internal/testnet"
)

// What nobody wants to measure runs in a process of its own: this program
// again, told its part by the environment.
const partVariable = "TOKENPLACE_BENCH_PART"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(partVariable) {
	case "":
		os.Exit(m.Run())
	case "target":
		err = runTarget()
	case "fleet":
		err = runFleet()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startPart starts this program in another part and decodes its first line
// into v.
func startPart(b testing.TB, part string, v any, args ...string) *testnet.Process {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	p := testnet.Start(b, testnet.Command{Name: part, Path: self, Args: args, Env: []string{partVariable + "=" + part}})
	p.Line(v)
	return p
}

func printLine(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

func median[T cmp.Ordered](all []T) T { return percentile(all, 50) }

// percentile sorts all.
func percentile[T cmp.Ordered](all []T, p int) T {
	slices.Sort(all)
	return all[min(len(all)*p/100, len(all)-1)]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// report replaces the time per operation, which means nothing here, by figures
// of their own.
func report(b *testing.B, figures map[string]float64) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for unit, v := range figures {
		b.ReportMetric(v, unit)
	}
}
