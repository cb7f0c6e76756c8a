//go:build !linux

package tunnel

import "net"

// tuneTCP does nothing where the standard library has no names for it.
func tuneTCP(*net.TCPConn) {}
