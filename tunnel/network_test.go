package tunnel_test

import (
	"net"
	"sync"
	"testing"
	"time"

	"token.place/internal/memnet"
)

// wire makes the bytes written to an end arrive as they would over a distance.
type wire struct {
	net.Conn
	delay time.Duration // one way
	rate  int           // bytes per second; 0 is no limit
	room  int           // bytes a Write may leave unsent, as TCP_NOTSENT_LOWAT does; 0 is no limit

	mu     sync.Mutex // guards the fields below
	moved  sync.Cond
	queue  []packet
	unsent int
	closed bool
	lost   bool // what is written from now on vanishes
}

type packet struct {
	at   time.Time
	data []byte
}

// distance returns the relay's and the node's end of a link with this round
// trip; the node's uplink has the rate, and room for little that is unsent.
func distance(t testing.TB, roundTrip time.Duration, rate int) (relay, node *wire) {
	a, b := memnet.Pipe()
	relay = &wire{Conn: a, delay: roundTrip / 2}
	node = &wire{Conn: b, delay: roundTrip / 2, rate: rate, room: 16 << 10}
	var wg sync.WaitGroup
	for _, w := range []*wire{relay, node} {
		w.moved.L = &w.mu
		wg.Go(w.deliver)
	}
	t.Cleanup(func() {
		relay.Close()
		node.Close()
		wg.Wait()
	})
	return relay, node
}

func (w *wire) Write(p []byte) (int, error) {
	const segment = 1400
	for b := p; len(b) > 0; {
		n := min(len(b), segment)
		w.mu.Lock()
		for w.rate > 0 && w.unsent >= w.room && !w.closed {
			w.moved.Wait()
		}
		if w.closed {
			w.mu.Unlock()
			return len(p) - len(b), net.ErrClosed
		}
		w.queue = append(w.queue, packet{time.Now(), append([]byte(nil), b[:n]...)})
		w.unsent += n
		w.moved.Broadcast()
		w.mu.Unlock()
		b = b[n:]
	}
	return len(p), nil
}

// deliver sends what is queued at the rate and hands it over after the delay.
func (w *wire) deliver() {
	arrivals := make(chan packet, 1<<16)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(arrivals)
	wg.Go(func() {
		for p := range arrivals {
			time.Sleep(time.Until(p.at))
			w.Conn.Write(p.data)
		}
		w.Conn.Close()
	})
	for {
		w.mu.Lock()
		for len(w.queue) == 0 && !w.closed {
			w.moved.Wait()
		}
		if len(w.queue) == 0 {
			w.mu.Unlock()
			return
		}
		p, lost := w.queue[0], w.lost
		w.queue = w.queue[1:]
		w.mu.Unlock()
		if w.rate > 0 {
			time.Sleep(time.Duration(len(p.data)) * time.Second / time.Duration(w.rate))
			p.at = time.Now()
		}
		if p.at = p.at.Add(w.delay); !lost {
			arrivals <- p
		}
		w.mu.Lock()
		w.unsent -= len(p.data)
		w.moved.Broadcast()
		w.mu.Unlock()
	}
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.moved.Broadcast()
	// The other end learns of it when the bytes before it have arrived, this
	// end's reader at once.
	return w.Conn.SetReadDeadline(time.Unix(1, 0))
}

// vanish loses whatever this end sends from now on, and says nothing.
func (w *wire) vanish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = true
}
