package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// garbage is how much of it a relay lets gather before it is collected, as
	// long as that is within the percentages of the live heap below.
	garbage              = 64 << 20
	minPercent           = 40
	maxPercent           = 400
	liveHeap             = "/gc/heap/live:bytes"
	percentWorthChanging = 10
)

// tuneGC has the collector run after about the same amount of garbage however
// much is alive: by Go's default a small heap is collected every few exchanges,
// and the heap of 10,000 idle nodes only when it has doubled
// (docs/adr/0006-garbage.md). GOGC in the environment goes before.
func tuneGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: liveHeap}}
	percent := 100
	var adjust func(int)
	adjust = func(int) {
		metrics.Read(live)
		want := int(min(max(garbage*100/max(live[0].Value.Uint64(), 1), minPercent), maxPercent))
		if change := want - percent; change > percentWorthChanging || change < -percentWorthChanging {
			debug.SetGCPercent(want)
			percent = want
		}
		// Found dead by the next collection, which so calls adjust again. It has a
		// pointer because objects without may share their block with others.
		runtime.AddCleanup(new(*byte), adjust, 0)
	}
	adjust(0)
}
