//go:build race

package tunnel_test

// raceEnabled scales down what the race detector makes many times dearer.
const raceEnabled = true
