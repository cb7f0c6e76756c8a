// Package tokenplace holds the rules of the house: which package may import
// which, and which modules the project may depend on. They are tests, in
// house_test.go. The program is cmd/tokenplace; the protocol is in spec/.
package tokenplace
