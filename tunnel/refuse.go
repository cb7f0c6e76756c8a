package tunnel

import (
	"context"
	"time"
)

// RefusedError is returned by Serve when the relay does not take the node. Its
// reason is one of the constants, or empty for one that is not known here.
type RefusedError struct{ Reason Refusal }

func (e *RefusedError) Error() string {
	if e.Reason == "" {
		return "refused by the relay"
	}
	return "refused by the relay: " + string(e.Reason)
}

// Refusal is why a relay does not take a node.
type Refusal string

const (
	RefusedExpired    Refusal = "expired"     // the descriptor is not valid now: the clocks differ, or it was not renewed
	RefusedMalformed  Refusal = "malformed"   // the status or the descriptor in it: the versions differ
	RefusedNotAllowed Refusal = "not-allowed" // the relay has a list of nodes, and this is not on it
	RefusedFull       Refusal = "full"        // the relay has as many nodes as it takes
)

// refuseTime is how long a node may take to hear why it is refused.
const refuseTime = 2 * time.Second

// Refuse tells the node why it is not taken and closes the connection.
func (c *Conn) Refuse(ctx context.Context, why Refusal) {
	ctx, cancel := context.WithTimeout(ctx, refuseTime)
	defer cancel()
	defer c.Close()
	c.refuse()
	// A node that does not understand is refused no less.
	_ = c.askDrain(ctx, "/refused?"+string(why))
}

// refusedError makes an error of what a relay says, in our own words only.
func refusedError(query string) error {
	switch why := Refusal(query); why {
	case RefusedExpired, RefusedMalformed, RefusedNotAllowed, RefusedFull:
		return &RefusedError{why}
	}
	return &RefusedError{}
}
