package tunnel

import (
	"math/rand/v2"
	"time"
)

// Backoff spaces a node's attempts to connect to a relay. Its zero value is
// ready; use one for each relay, from one goroutine.
type Backoff struct{ failures int }

const (
	firstWait = 100 * time.Millisecond
	maxWait   = 4 * time.Second // a relay that restarts is found within 5 s

	// steady is how long a connection must have stood to count as a success.
	steady = 10 * time.Second
)

// Next is how long to wait before the next attempt, given how long the last
// connection stood (zero if there was none): a random part of 100 ms, doubled
// for each failure in a row up to 4 s. Random from zero up, so that the nodes
// of a relay that went away do not come back together.
func (b *Backoff) Next(stood time.Duration) time.Duration {
	if stood >= steady {
		b.failures = 0
	}
	limit := min(firstWait<<b.failures, maxWait)
	if limit < maxWait {
		b.failures++
	}
	return rand.N(limit)
}
