package testnet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"token.place/e2e/internal/debian"
)

var listening = regexp.MustCompile(`listening on (http://\S+)`)

// StartLlama starts llama-server with the weights of pocket and returns its
// URL. An error says why it is not to be had here: it comes from Debian's sid,
// which moves.
func StartLlama(tb testing.TB) (url string, err error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 2*time.Minute)
	defer cancel()
	dir := Cache(tb, "llama")
	if err := debian.Fetch(ctx, "sid", dir, "llama.cpp-tools"); err != nil {
		return "", err
	}
	path, args, err := debian.Command(dir, "usr/bin/llama-server")
	if err != nil {
		return "", err
	}
	// It loads the code for this machine's CPU from its working directory.
	backends, err := filepath.Glob(filepath.Join(dir, "usr/lib/*/ggml/backends*"))
	if err != nil || len(backends) == 0 {
		return "", fmt.Errorf("llama-server's package has no back ends where they were")
	}
	weights := filepath.Join(Root(tb), "engine/pocket/pocket.gguf")
	args = append(args, "-m", weights, "-a", "pocket", "--host", "127.0.0.1", "--port", "0",
		"-c", "1024", "-np", "2", "-t", "1", "--poll", "0")
	p := Start(tb, Command{Name: "llama-server", Path: path, Args: args, Work: backends[0]})
	for began := time.Now(); time.Since(began) < Patience; time.Sleep(20 * time.Millisecond) {
		if m := listening.FindStringSubmatch(p.Stderr() + p.Stdout()); m != nil {
			return m[1], nil
		}
		select {
		case <-p.Done():
			return "", fmt.Errorf("llama-server ended at once: %s", tail(p.Stderr()))
		default:
		}
	}
	return "", fmt.Errorf("llama-server was not ready after %v", Patience)
}

// NodeModules installs the npm packages of e2e/package-lock.json and returns
// the folder that has them.
func NodeModules(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Join(Root(tb), "e2e")
	unlock, err := debian.Lock(Cache(tb, "npm"))
	if err != nil {
		tb.Fatal(err)
	}
	defer unlock()
	locked, err := os.ReadFile(filepath.Join(dir, "package-lock.json"))
	if err != nil {
		tb.Fatal(err)
	}
	done := filepath.Join(dir, "node_modules/.installed")
	if was, err := os.ReadFile(done); err == nil && string(was) == string(locked) {
		return dir
	}
	fmt.Fprintln(os.Stderr, "e2e: installing npm packages")
	cmd := exec.CommandContext(tb.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("npm ci: %v\n%s", err, tail(string(out)))
	}
	if err := os.WriteFile(done, locked, 0o644); err != nil {
		tb.Fatal(err)
	}
	return dir
}
