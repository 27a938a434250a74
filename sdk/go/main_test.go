package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func vectors(t *testing.T, name string, into any) {
	t.Helper()
	raw, err := os.ReadFile("../../docs/protocol/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type recorder struct{ got []byte }

func (r *recorder) deliver(data []byte) { r.got = append(r.got, data...) }
func (r *recorder) endOfInput()         {}
func (r *recorder) holdSource(bool)     {}

type step struct {
	Do       string
	Tunnel   uint32
	Hex      string
	Received uint64
	Limit    uint64
	Violates bool
	Sends    []string
	Delivers string
	Over     bool
}

func perform(t *testing.T, s *stream, out *outbox, given step) error {
	t.Helper()
	switch given.Do {
	case "attach":
		s.attach(out, given.Tunnel)
	case "detach":
		s.out = nil
	case "write":
		s.write(unhex(t, given.Hex))
	case "eof":
		s.writeEOF()
	case "opened":
		s.onOpened(given.Limit)
	case "data":
		return s.onData(unhex(t, given.Hex))
	case "peer_eof":
		return s.onEOF()
	case "window":
		return s.onWindow(given.Received, given.Limit)
	case "blocked":
		s.onBlocked(given.Limit)
	case "resume":
		return s.resume(given.Received, given.Limit)
	case "stall":
		s.stalled = true
	case "drained":
		s.drained()
	default:
		t.Fatalf("no such step: %s", given.Do)
	}
	return nil
}

func TestAnEndDoesWhatItsScriptSays(t *testing.T) {
	var file struct {
		Scripts []struct {
			Name   string
			Window uint64
			Steps  []step
		}
	}
	vectors(t, "binary-v2-stream.json", &file)
	if len(file.Scripts) < 5 {
		t.Fatal("no scripts")
	}
	for _, script := range file.Scripts {
		t.Run(script.Name, func(t *testing.T) {
			sink, out, all := &recorder{}, newOutbox(), &budget{}
			all.left.Store(1 << 20)
			s := newStream(sink, token{}, all, script.Window)
			for number, given := range script.Steps {
				sink.got = nil
				err := perform(t, s, out, given)
				if given.Violates {
					if err == nil {
						t.Fatalf("step %d should violate", number)
					}
					return
				}
				if err != nil {
					t.Fatalf("step %d: %v", number, err)
				}
				var sent []string
				for {
					op, head, payload := out.next(false)
					if op == 0 {
						break
					}
					sent = append(sent, hex.EncodeToString(head)+hex.EncodeToString(payload))
				}
				if len(sent) != len(given.Sends) {
					t.Fatalf("step %d %s sent %v, not %v", number, given.Do, sent, given.Sends)
				}
				for i := range sent {
					if sent[i] != given.Sends[i] {
						t.Fatalf("step %d sent %v, not %v", number, sent, given.Sends)
					}
				}
				if !bytes.Equal(sink.got, unhex(t, given.Delivers)) {
					t.Fatalf("step %d delivered %x, not %s", number, sink.got, given.Delivers)
				}
				if s.over() != given.Over {
					t.Fatalf("step %d: over is %v", number, s.over())
				}
			}
		})
	}
}

func TestVerdictsAreThoseOfTheVectors(t *testing.T) {
	var file struct {
		Addresses []struct {
			Address, Verdict string
			Port             int
		}
		Own []struct{ Of, Address, Verdict string }
	}
	vectors(t, "egress.json", &file)
	s := &settings{}
	for _, row := range file.Addresses {
		want := row.Verdict
		if want == "allowed" {
			want = ""
		}
		if got := s.egressVerdict(netip.MustParseAddr(row.Address), row.Port, nil); got != want {
			t.Errorf("%s:%d is %q, not %q", row.Address, row.Port, got, want)
		}
	}
	for _, row := range file.Own {
		own := &ownNetworks{read: time.Now()}
		if address, bits, given := strings.Cut(row.Of, "/"); given {
			number, _ := strconv.Atoi(bits)
			own.interfaces = append(own.interfaces, ownNetwork(netip.MustParseAddr(address), number))
		} else {
			own.told(address)
		}
		got := s.egressVerdict(netip.MustParseAddr(row.Address), 443, own.networks())
		if got != row.Verdict && (got != "" || row.Verdict != "allowed") {
			t.Errorf("%s of %s is %q, not %q", row.Address, row.Of, got, row.Verdict)
		}
	}
	if s.egressVerdict(netip.MustParseAddr("fe80::1%eth0"), 443, nil) == "" {
		t.Error("a zone is allowed")
	}
}

func TestFramesReadAndWriteAsTheirVectorsSay(t *testing.T) {
	type row struct {
		Name, Hex, Type, Host, Token, Detail string
		Tunnel                               uint32
		Port                                 int
		Received, Limit                      uint64
		Reason                               byte
	}
	var file struct{ Frames, Malformed, Ignored []row }
	vectors(t, "binary-v2.json", &file)
	for _, v := range file.Frames {
		raw := unhex(t, v.Hex)
		kind, tunnel, body, err := parseMux(raw)
		if err != nil || tunnel != v.Tunnel {
			t.Errorf("%s: %v, tunnel %d", v.Name, err, tunnel)
			continue
		}
		switch kind {
		case muxOpen:
			given, err := parseOpen(body)
			if err != nil || given.host != v.Host || given.port != v.Port || given.limit != v.Limit ||
				hex.EncodeToString(given.token[:]) != v.Token {
				t.Errorf("%s: %+v %v", v.Name, given, err)
			}
		case muxWindow, muxResumed:
			if got := muxFrame(kind, tunnel, v.Received, v.Limit); !bytes.Equal(got, raw) {
				t.Errorf("%s: %x", v.Name, got)
			}
		case muxRefused, muxReset:
			if got := muxReasonFrame(kind, tunnel, v.Reason, v.Detail); !bytes.Equal(got, raw) {
				t.Errorf("%s: %x", v.Name, got)
			}
		}
	}
	for _, v := range file.Malformed {
		kind, _, body, err := parseMux(unhex(t, v.Hex))
		if err == nil && kind == muxOpen {
			_, err = parseOpen(body)
		}
		if err == nil {
			t.Errorf("%s is taken", v.Name)
		}
	}
	for _, v := range file.Ignored {
		if kind, _, _, err := parseMux(unhex(t, v.Hex)); err != nil || kind != 0 {
			t.Errorf("%s is not ignored", v.Name)
		}
	}
}

func TestTextsAreReadAsTheirVectorsSay(t *testing.T) {
	var file struct {
		MalformedTexts []string `json:"malformedTexts"`
		Texts          []struct{ Name, JSON string }
	}
	vectors(t, "binary-v1.json", &file)
	for _, text := range file.MalformedTexts {
		if _, _, err := parseText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	for _, text := range file.Texts {
		if _, _, err := parseText([]byte(text.JSON)); err != nil {
			t.Errorf("%s: %v", text.Name, err)
		}
	}
}

func TestHoursOfTheDay(t *testing.T) {
	at := func(hour, minute int) time.Time { return time.Date(2026, 1, 1, hour, minute, 0, 0, time.UTC) }
	night, day, always := parseSchedule("22:00-06:30"), parseSchedule("08:00-17:00"), parseSchedule("00:00-00:00")
	if !night.openAt(at(23, 0)) || !night.openAt(at(6, 29)) || night.openAt(at(6, 30)) || night.openAt(at(12, 0)) {
		t.Error("over midnight")
	}
	if !day.openAt(at(8, 0)) || day.openAt(at(17, 0)) || !always.openAt(at(3, 3)) {
		t.Error("within a day")
	}
	for _, text := range []string{"24:00-01:00", "1:00-2:00", "08:00", "08:00-17:60", "x"} {
		if parseSchedule(text) != nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestWaitsAndChargersAreThoseOfTheVectors(t *testing.T) {
	var file struct {
		Waits    map[string]float64
		Chargers []struct {
			Name     string
			Supplies map[string]string
			Charging *bool
		}
	}
	vectors(t, "device.json", &file)
	given := times{}
	for name, seconds := range file.Waits {
		if err := given.set(fmt.Sprintf("%s=%g", name, seconds)); err != nil {
			t.Fatal(err)
		}
	}
	if given != defaultTimes() {
		t.Errorf("waits are %+v", defaultTimes())
	}
	for _, row := range file.Chargers {
		folder := t.TempDir()
		for path, text := range row.Supplies {
			path = filepath.Join(folder, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text+"\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		charging, known := onCharger(folder)
		if known != (row.Charging != nil) || (known && charging != *row.Charging) {
			t.Errorf("%s: %v, known %v", row.Name, charging, known)
		}
	}
}

func FuzzFramesNeverPanic(f *testing.F) {
	f.Add([]byte{0x10, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if kind, _, body, err := parseMux(raw); err == nil && kind == muxOpen {
			_, _ = parseOpen(body)
		}
		_, _, _ = parseText(raw)
	})
}
