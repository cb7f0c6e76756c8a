package tunnel

import "net"

// Conn under test: what gathers writes.
type TestingOnlyConn = conn

func TestingOnlyNewConn(nc net.Conn) *TestingOnlyConn { return newConn(nc) }

// TestingOnlyIdle reports that c holds no buffer and no goroutine.
func (c *conn) TestingOnlyIdle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending == nil && !c.writing
}
