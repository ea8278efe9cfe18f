{{- define "netdp.labels" -}}
app.kubernetes.io/name: netdp
{{- end }}

{{- define "netdp.selector" -}}
{{- if .Values.replaceIpMasqAgent -}}
k8s-app: ip-masq-agent
{{- else -}}
app.kubernetes.io/name: netdp
{{- end }}
{{- end }}

{{- define "netdp.daemonset" -}}
{{ if .Values.replaceIpMasqAgent }}ip-masq-agent{{ else }}netdp{{ end }}
{{- end }}

{{- define "netdp.image" -}}
{{- $tag := .Chart.AppVersion }}
{{- if eq .Values.mode "iptables" }}{{ $tag = printf "%s-iptables" $tag }}{{ end }}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "netdp.capabilities" -}}
{{- if eq .Values.mode "iptables" -}}
[NET_ADMIN, NET_RAW]
{{- else if .Values.sysAdmin -}}
[SYS_ADMIN, NET_ADMIN]
{{- else -}}
[BPF, NET_ADMIN, PERFMON]
{{- end }}
{{- end }}
