//go:build unix

package identity

import (
	"fmt"
	"os"
)

func checkPrivate(path string, info os.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("identity file %s can be read by others (mode %04o): run chmod 600 %s", path, mode, path)
	}
	return nil
}
