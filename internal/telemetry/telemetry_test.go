package telemetry_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"token.place/internal/telemetry"
)

// secret stands for a prompt, an address, a token or a key.
const secret = "CANARY-198.51.100.7"

// logAll tries every way to get the secret into a line.
func logAll(l *slog.Logger) {
	l.Warn("relay starts", "listen", "127.0.0.1:8443", "prompt", secret, "remote", secret)
	l.Warn("tunnel ends", "node", "abc", "reason", errors.New(secret), "err", errors.New(secret))
	l.Info("tunnel ends", "reason", secret)
	l.Warn("node refused", "reason", telemetry.Reason("its descriptor has expired"))
	l.Debug("tunnel opens", "node", "abc", "models", struct{ S string }{secret})
	l.With("token", secret, "id", "own").Warn("ready", slog.Group("g", "id", secret))
	l.WithGroup("g").With("id", secret).Warn("nested", "id", secret)
	l.Info("bytes", "id", []byte(secret), "key", []byte(secret))
}

func TestOnlyAllowedAttributesLeave(t *testing.T) {
	for _, env := range []telemetry.Environment{telemetry.Production, telemetry.Development} {
		var out bytes.Buffer
		logAll(telemetry.New(env, &out))
		if strings.Contains(out.String(), "CANARY") {
			t.Errorf("%s: the secret left:\n%s", env, out.String())
		}
		var quiet bytes.Buffer
		logAll(telemetry.Warnings(env, &quiet))
		if got, want := strings.Contains(quiet.String(), "INFO"), env == telemetry.Development; got != want {
			t.Errorf("%s: Warnings logs news: %v", env, got)
		}
		for _, want := range []string{`listen="127.0.0.1:8443"`, `reason="its descriptor has expired"`, `ready id="own"`, "nested\n"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %s in\n%s", env, want, out.String())
			}
		}
		if got, want := strings.Contains(out.String(), `node="abc"`), env == telemetry.Development; got != want {
			t.Errorf("%s: connection metadata logged: %v", env, got)
		}
		if got, want := strings.Contains(out.String(), "tunnel opens"), env == telemetry.Development; got != want {
			t.Errorf("%s: debug lines logged: %v", env, got)
		}
	}
}

func TestLinesStayLines(t *testing.T) {
	var out bytes.Buffer
	telemetry.New(telemetry.Development, &out).Info("start", "id", "a\nFAKE line", "models", 3)
	if n := strings.Count(out.String(), "\n"); n != 1 || !strings.Contains(out.String(), "models=3") {
		t.Errorf("%d lines: %q", n, out.String())
	}
}

func TestParseEnvironment(t *testing.T) {
	if e, err := telemetry.ParseEnvironment(""); e != telemetry.Production || err != nil {
		t.Errorf("unset: %q, %v", e, err)
	}
	if _, err := telemetry.ParseEnvironment("prod"); err == nil {
		t.Error("prod passed")
	}
}
