package tunnel

import (
	"net"
	"syscall"
)

// Numbers of linux/tcp.h that package syscall does not name.
const (
	tcpUserTimeout  = 18
	tcpNotSentLowat = 25
)

// tuneTCP ends a connection whose peer has not acknowledged anything for 3.5 s
// (keep-alives are not sent while data waits for that) and wakes the writer
// only when less than a frame is unsent.
func tuneTCP(tcp *net.TCPConn) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, 3500)
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, frameSize)
	})
}
