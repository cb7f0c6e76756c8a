package pocket

import (
	"context"
	"errors"
	"sync"
)

var errBusy = errors.New("every slot is taken and the queue is full")

// A queue hands a fixed set of sessions to exchanges, first come first served,
// and lets a bounded number wait.
type queue struct {
	depth int // how many may wait

	mu      sync.Mutex // guards what follows
	free    []*session
	waiting []chan *session // each has room for one, so handing over never blocks
}

// acquire returns a session, waiting for one until ctx is done. It fails at
// once with errBusy when too many wait already. The caller must release it.
func (q *queue) acquire(ctx context.Context) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q.mu.Lock()
	if n := len(q.free); n > 0 {
		s := q.free[n-1]
		q.free = q.free[:n-1]
		q.mu.Unlock()
		return s, nil
	}
	if len(q.waiting) >= q.depth {
		q.mu.Unlock()
		return nil, errBusy
	}
	turn := make(chan *session, 1)
	q.waiting = append(q.waiting, turn)
	q.mu.Unlock()

	select {
	case s := <-turn:
		return s, nil
	case <-ctx.Done():
		q.leave(turn)
		return nil, ctx.Err()
	}
}

// leave takes turn out of the queue, passing on a session that had just come.
func (q *queue) leave(turn chan *session) {
	q.mu.Lock()
	for i, t := range q.waiting {
		if t == turn {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			q.mu.Unlock()
			return
		}
	}
	q.mu.Unlock()
	q.release(<-turn)
}

// release wipes s and gives it to whoever has waited longest.
func (q *queue) release(s *session) {
	s.reset()
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.free = append(q.free, s)
		return
	}
	q.waiting[0] <- s
	q.waiting = q.waiting[1:]
}
