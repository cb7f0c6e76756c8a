package network

import (
	"net/http"
	"strings"
	"testing"

	"token.place/e2e/internal/debian"
	"token.place/e2e/internal/testnet"
)

// TestThreeHosts puts relay, node and client on hosts of their own; node and
// client can reach the relay only. The second time the node's network loses
// packets.
func TestThreeHosts(t *testing.T) {
	for _, lossy := range []bool{false, true} {
		name := "sound"
		if lossy {
			name = "lossy"
		}
		t.Run(name, func(t *testing.T) {
			middle, left, right := testnet.NewHost(t), testnet.NewHost(t), testnet.NewHost(t)
			testnet.Connect(middle, "10.77.1.1/24", left, "10.77.1.2/24")
			testnet.Connect(middle, "10.77.2.1/24", right, "10.77.2.2/24")
			relay := testnet.StartRelay(t, testnet.Command{Host: middle}, "--listen", "0.0.0.0:0")
			if lossy {
				if err := debian.Install(t.Context(), "nft", "nftables"); err != nil {
					t.Fatal(err)
				}
				left.Run("nft", "add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; "+
					"add rule ip lossy in iifname != lo numgen random mod 100 < 20 counter drop")
			}
			node := testnet.StartNode(t, testnet.Command{Host: left}, relay.At("10.77.1.1"), "pocket")
			server := testnet.StartServer(t, testnet.Command{Host: right}, relay.At("10.77.2.1"), []*testnet.Node{node})
			q := testnet.Question{
				Client: &http.Client{Transport: &http.Transport{DialContext: right.Dial}},
				Base:   server.BaseURL, Model: "pocket", Prompt: question, Stream: true,
			}
			t.Logf("first answer after %v", eventually(t, q, testnet.Patience))
			for range 10 {
				if got := q.Get(t.Context()); !got.Whole(true) || strings.TrimSpace(got.Text) != answer {
					t.Errorf("got %+v", got)
				}
			}
			if lossy {
				lost := left.Run("nft", "list", "chain", "ip", "lossy", "in")
				if strings.Contains(lost, "packets 0 ") {
					t.Error("no packet was lost")
				}
				t.Log(lost)
			}
		})
	}
}
