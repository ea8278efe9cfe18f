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
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}
