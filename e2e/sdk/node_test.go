package sdk

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"testing"
	"time"

	"token.place/e2e/internal/stub"
	"token.place/e2e/internal/testnet"
)

// TestNodeClients runs the *.test.mjs files here with Node's own test runner.
func TestNodeClients(t *testing.T) {
	dir := testnet.NodeModules(t)
	gone := make(chan time.Time, 16)
	aborts := testnet.StartDev(t, testnet.Command{Name: "dev-stub"}, "--engine", stub.New(t, stub.Drip(gone)).URL)
	// Where the JavaScript asks whether the engine has been stopped.
	stopped := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-gone:
		case <-time.After(testnet.Patience):
			w.WriteHeader(http.StatusGatewayTimeout)
		}
	}))
	defer stopped.Close()
	overEngines(t, func(t *testing.T, baseURL string) {
		for _, file := range []string{"openai.test.mjs", "ai.test.mjs"} {
			t.Run(file, func(t *testing.T) {
				cmd := exec.CommandContext(t.Context(), "node", "--test", "sdk/"+file)
				cmd.Dir = dir
				cmd.Env = append(cmd.Environ(), "BASE_URL="+baseURL, "STUB_BASE_URL="+aborts.BaseURL, "STUB_GONE="+stopped.URL)
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Errorf("node --test: %v", err)
				}
				t.Logf("%s", out)
			})
		}
	})
}
